"""The server as a process: many users at once, an upload that stops, the end by a signal."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import START

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.serving import running
from modeling_mllmreid.serving.protection import Access, Protection
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.outputs import try_lock


def test_an_address_that_cannot_be_used(gallery, monkeypatch):
    with pytest.raises(UserError, match="192.0.2.1:7860: cannot be used"):
        running._listen("192.0.2.1", 7860)


def form_of(path):
    """The body of a form with a photo, and its headers."""
    start = b'--x\r\nContent-Disposition: form-data; name="photos"; filename="a.png"\r\n\r\n'
    return start + path.read_bytes() + b"\r\n--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}


def ask(url, path):
    """Searches by a photo; returns the ids."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/search", *form_of(path))) as answer:
        return [hit["id"] for hit in json.load(answer)["hits"]]


def test_an_upload_that_stops_does_not_hold_up_the_end(app):
    """The server ends after 3 parts; the fourth never comes."""
    clock, ended = [0.0], []
    limits = {"most_bytes": 2**20, "file_bytes": 2**20}
    served = Protection(app, Access(), "127.0.0.1", ending=lambda: bool(ended), clock=lambda: clock[0], **limits)
    answer, count = [], 0

    async def receive():
        nonlocal count
        count += 1
        if count == 4:
            ended.append(True)
            asyncio.get_running_loop().call_later(0.3, lambda: clock.__setitem__(0, 5.1))
            await asyncio.Event().wait()
        return {"type": "http.request", "body": START % b"a.png" if count == 1 else bytes(99), "more_body": True}

    async def send(message):
        answer.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b""}
    scope["headers"] = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    asyncio.run(asyncio.wait_for(served(scope, receive, send), 10))
    assert answer[0]["status"] == 503 and (b"connection", b"close") in answer[0]["headers"]
    assert json.loads(answer[1]["body"]) == {"error": "the server ends: send the request again later"}
    assert served.unfinished == 1 and count == 4


def test_a_request_that_is_cancelled_at_the_end_is_answered():
    async def slow(scope, receive, send):
        await asyncio.Event().wait()

    async def run(ending):
        answer = []

        async def send(message):
            answer.append(message)

        served = Protection(slow, Access(), "127.0.0.1", most_bytes=9, file_bytes=9, ending=lambda: ending)
        scope = {"type": "http", "path": "/api/info", "headers": [(b"host", b"127.0.0.1")]}
        task = asyncio.ensure_future(served(scope, None, send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return answer, task.cancelled()

    assert asyncio.run(run(False)) == ([], True)
    answer, cancelled = asyncio.run(run(True))
    assert answer[0]["status"] == 503 and not cancelled


def test_fifty_searches_at_once_and_a_graceful_end(tmp_path, crops):
    images = [Path(image) for image in crops(20)]
    place = tmp_path / "served"
    gallery = Gallery.create(place, "pedestrians-small")
    gallery.add(images)
    command = [sys.executable, "-m", "modeling_mllmreid", "serve", "--gallery", str(place), "--port", "0"]
    temporary = tmp_path / "temporary"
    killed, running_one = (temporary / f".mllmreid-page-{os.getuid()}.{name}.part" for name in ("killed", "running"))
    for folder in (killed, running_one):
        folder.mkdir(parents=True)
        (folder / "photo.png").write_bytes(b"a person")
    lock = try_lock(running_one)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    expected = {image: [hit.id for hit in gallery.search(str(image)).hits] for image in images}
    with subprocess.Popen(command, **pipes) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert url, process.stderr.read()
            with ThreadPoolExecutor(50) as pool:
                asked = [images[n % 20] for n in range(50)]
                assert list(pool.map(lambda image: ask(url[0], image), asked)) == [expected[image] for image in asked]
            # The uploads of a killed server are removed, those of a running one are not.
            assert not killed.exists() and running_one.exists() and len(list(temporary.glob(".mllmreid-page-*"))) == 2
            # SIGTERM while two requests are half sent. One is completed, and answered.
            stuck = socket.create_connection(("127.0.0.1", int(url[1])), timeout=30)
            stuck.sendall(b"POST /api/search HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n")
            stuck.sendall(b"content-type: multipart/form-data; boundary=x\r\n\r\n" + START % b"a.png")
            body, headers = form_of(images[3])
            connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=30)
            connection.putrequest("POST", "/api/search")
            for name, value in {**headers, "content-length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders(body[:50])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.send(body[50:])
            answer = connection.getresponse()
            assert answer.status == 200 and [hit["id"] for hit in json.load(answer)["hits"]] == expected[images[3]]
            connection.close()
            refused = b"".join(iter(lambda: stuck.recv(4096), b""))
            assert refused.startswith(b"HTTP/1.1 503") and b"the server ends: send the request again later" in refused
            stuck.close()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
        assert process.stdout.read() == "stopped; uploads that were not complete: 1\n"
    os.close(lock)
    assert list(temporary.glob(".mllmreid-page-*")) == [running_one]
    with pytest.raises(urllib.error.URLError):
        ask(url[0], images[0])
    assert sum(1 for _ in Audit(f"{place}.audit").lines()) == 51
