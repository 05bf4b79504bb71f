"""An engine on this machine that speaks the OpenAI-compatible protocol, and fails as a test tells it to."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

MODEL = "tiny"


class Engine:
    """What the server does, and what it has received.

    Args:
        behave (`Callable[[int, dict], Any]`): Receives the number of a request, from 0, and its body; returns the
            content of a good answer, or `(status, body, headers)`, or raises `ConnectionError` to break off.
    """

    def __init__(self, behave):
        self.behave, self.requests, self.headers, self.images = behave, [], [], []
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0
        self.models = (200, json.dumps({"object": "list", "data": [{"id": MODEL}, {"id": "other"}]}), {})
        self.url = None


def answer(content, finish_reason="stop"):
    """The body of a good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return json.dumps({"object": "chat.completion", "model": MODEL, "choices": [choice]})


def images_of(body):
    """The images of a request."""
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def text_of(body):
    """The text of a request."""
    return body["messages"][0]["content"][-1]["text"]


@contextmanager
def engine(behave):
    """Runs a server within the block; yields the `Engine`."""
    state = Engine(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, status, text, headers):
            content = text.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            assert self.path == "/v1/models"
            state.headers.append(dict(self.headers))
            self.reply(*state.models)

        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                reply = state.behave(number, body)
            except ConnectionError:
                self.close_connection = True
                return
            finally:
                with state.lock:
                    state.at_once -= 1
            try:
                self.reply(*(reply if isinstance(reply, tuple) else (200, answer(reply), {})))
            except (BrokenPipeError, ConnectionResetError):  # the client waited long enough
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def stall(seconds):
    """Keeps a request waiting."""
    time.sleep(seconds)
