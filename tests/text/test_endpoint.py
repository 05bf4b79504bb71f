"""Texts by an engine: what it receives, what is written, and every way in which it fails."""

import json
import os
import re
import signal
import socket
import sys
import threading

import numpy as np
import pytest
from engine_server import MODEL, answer, engine, images_of, stall, text_of
from noise_people import write_noise_people
from PIL import Image

from modeling_mllmreid.commands import caption
from modeling_mllmreid.data.captions import CaptionRecord, read_records
from modeling_mllmreid.options.endpoint_arguments import EndpointArguments
from modeling_mllmreid.text import captioning, endpoint
from modeling_mllmreid.text.endpoint import Endpoint
from modeling_mllmreid.text.instructions import STANDARD_POOL
from modeling_mllmreid.utils.errors import UserError

IMAGES = 6


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(endpoint, "WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def people(tmp_path):
    return write_noise_people(tmp_path / "people", train=IMAGES)


@pytest.fixture
def write(people, tmp_path):
    """Runs the command; the model has no files here."""

    def call(url, *more, output="captions.jsonl"):
        flags = ["--model", "someone/some-model", "--served_model", MODEL, "--endpoint", url, "--licence", "mit"]
        data = ["--dataset", "market1501", "--data_dir", str(people), "--output", str(tmp_path / output)]
        caption.main([*flags, *data, "--requests_at_once", "2", "--max_new_tokens", "5", *more])
        return read_records(tmp_path / output, CaptionRecord)

    return call


def echo(number, body):
    """A text that only depends on the request."""
    image = next(iter(images_of(body)), Image.new("RGB", (1, 1)))
    return f" {text_of(body)[:20]}\n{np.asarray(image).sum()} "


def test_captions_by_an_engine(write, people, tmp_path, capsys):
    together = threading.Barrier(3)

    def three_at_once(number, body):
        if number < 3:
            together.wait(30)
        return echo(number, body)

    with engine(three_at_once) as server:
        records = write(server.url.removesuffix("/v1"), "--requests_at_once", "3")
    assert "12 captions written" in capsys.readouterr().out
    assert len({record.key for record in records}) == len(server.requests) == 12
    assert server.most_at_once == 3
    assert records[0].provenance == {
        **{"model": "someone/some-model", "revision": None, "licence": "mit", "prompts": list(STANDARD_POOL)},
        **{"max_new_tokens": 5, "do_sample": False, "temperature": None, "seed": 0},
        **{"endpoint": "localhost", "served_model": MODEL, "remote": False},
    }
    # Each text belongs to the image and the prompt of its key; the pixels are those of a model in this process.
    for record in records:
        prompt = captioning._prompt(STANDARD_POOL, record.key, 0)
        with Image.open(people / record.file_name) as image:
            square = np.asarray(captioning._square(image.convert("RGB")))
        assert record.caption == f"{' '.join(prompt[:20].split())} {square.sum()}"
    for body in server.requests:
        assert body.keys() == {"model", "max_tokens", "temperature", "messages"}
        assert (body["model"], body["max_tokens"], body["temperature"]) == (MODEL, 5, 0)
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
        assert images_of(body)[0].size == (40, 40)
    assert not any("Authorization" in headers for headers in server.headers)


def test_sampling_has_a_seed_of_its_own_for_each_text(write, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, "secret")
    with engine(echo) as server:
        records = write(server.url, "--do_sample", "true", "--temperature", "0.5")
        first = {json.dumps(body["messages"]): body["seed"] for body in server.requests}
        server.requests.clear()
        write(server.url, "--do_sample", "true", "--temperature", "0.5", output="again.jsonl")
        assert {json.dumps(body["messages"]): body["seed"] for body in server.requests} == first
    seeds = [body["seed"] for body in server.requests]
    assert len(set(seeds)) == 12 and all(0 <= seed < 2**31 for seed in seeds)  # llama.cpp takes 32 bits
    assert all((body["temperature"], body["top_p"]) == (0.5, 1) for body in server.requests)
    assert (records[0].provenance["temperature"], records[0].provenance["do_sample"]) == (0.5, True)
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
def test_the_settings_of_an_engine_and_its_checkpoint_have_no_part(write, owner):
    with engine(echo) as server:
        server.models = (200, json.dumps({"data": [{"id": MODEL, "owned_by": owner}]}), {})
        write(server.url, "--captions_per_image", "1")
        short = endpoint.Question("one", "text", None, 0)
        list(Endpoint(server.url, MODEL).answers([1], lambda item: short, str, max_new_tokens=2, temperature=None))
    assert server.requests.pop().get("min_tokens") == (None if owner == "llamacpp" else 2)
    for body in server.requests:
        assert body["chat_template_kwargs"] == {"enable_thinking": False} and body["min_p"] == 0
        assert body["top_k"] == (0 if owner == "llamacpp" else -1)
        assert body["repeat_penalty" if owner == "llamacpp" else "repetition_penalty"] == 1
        assert body.get("min_tokens") == (None if owner == "llamacpp" else 3)


def test_a_text_that_is_cut_is_kept_as_one_of_a_model_in_this_process(write):
    with engine(lambda number, body: (200, answer("a man in a", "length"), {})) as server:
        assert {record.caption for record in write(server.url)} == {"a man in a"}


def break_off(number, body):
    raise ConnectionError


def slow(number, body):
    stall(0.6)
    return "late"


BROKEN = [
    (lambda n, b: (429, "slow down", {}), r"answered 429 \(slow down\), 4 times in a row: see the log of the engine"),
    (lambda n, b: (500, '{"error": "CUDA"}', {}), r"answered 500 \({\"error\": \"CUDA\"}\), 4 times in a row"),
    (break_off, r"broke the connection off \(.+\), 4 times in a row"),
    (slow, r"gave no answer in 0.3 s, 4 times in a row: .*, then give the same command again, it writes the rest"),
    (lambda n, b: (200, "<html>", {}), r"is not OpenAI-compatible: its answer: not JSON \(.*\): give the address of"),
    (lambda n, b: (200, '{"choices": []}', {}), r"is not OpenAI-compatible: its answer: field choices: list should"),
    (lambda n, b: (200, answer(None), {}), r"\.jpg: tiny wrote an empty text: try another prompt or model"),
    (lambda n, b: (200, answer(" \n"), {}), r"\.jpg: tiny wrote an empty text: try another prompt or model"),
    (lambda n, b: (200, answer("", "length"), {}), r"\.jpg: tiny wrote nothing but thoughts in 5 tokens: turn"),
    (lambda n, b: (200, answer("a", "abort"), {}), r"ended the text of .*\.jpg by 'abort', not by stop or length"),
    (lambda n, b: (400, "too long", {}), r"refused the request for .*\.jpg: it answered 400 \(too long\): see the"),
    (lambda n, b: (302, "", {"Location": "http://127.0.0.2/"}), r"refused the request for .*\.jpg: it answered 302"),
    (lambda n, b: (401, "", {}), r"answered 401: give its key in the variable MLLMREID_ENDPOINT_KEY"),
    (lambda n, b: (200, answer("cut"), {"Content-Length": "999"}), r"(gave no answer|broke the connection off)"),
]


@pytest.mark.parametrize(("behave", "message"), BROKEN, ids=[message[:24] for _, message in BROKEN])
def test_an_engine_that_fails_in_the_middle_loses_nothing_written(write, tmp_path, behave, message):
    def fails_later(number, body):
        return echo(number, body) if number < 5 else behave(number, body)

    with engine(echo) as server:
        whole = {record.key: record for record in write(server.url, output="whole.jsonl")}
    with engine(fails_later) as server:
        with pytest.raises(UserError, match=message) as raised:
            write(server.url, "--request_timeout", "0.3")
        assert "\n" not in str(raised.value)
    done = read_records(tmp_path / "captions.jsonl", CaptionRecord)
    assert 4 <= len(done) <= 5
    content = (tmp_path / "captions.jsonl").read_text()
    assert content.endswith("\n") and len(content.splitlines()) == len(done)
    with engine(echo) as server:
        records = write(server.url)
    assert len(server.requests) == 12 - len(done)  # only the rest
    assert (tmp_path / "captions.jsonl").read_text().startswith(content)
    assert {record.key: record for record in records} == whole


def test_a_failure_that_passes_is_repeated(write):
    lock, failed = threading.Lock(), set()

    def passes(number, body):
        failures = [(429, "", {"Retry-After": "0"}), (503, "", {}), ConnectionError]
        with lock:
            key = json.dumps(body["messages"])
            tried = sum(known == key for known, _ in failed)
            if tried == len(failures):
                return echo(number, body)
            failed.add((key, tried))
        if failures[tried] is ConnectionError:
            raise ConnectionError
        return failures[tried]

    with engine(passes) as server:
        assert len(write(server.url)) == 12
    assert len(server.requests) == 48


def test_an_engine_is_asked_again_when_it_says(monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(endpoint, "WAITS", (1.0, 2.0, 4.0))
    monkeypatch.setattr(endpoint.asyncio, "sleep", sleep)
    delays = ["7", "0", "9999999"]
    with engine(lambda n, b: (429, "", {"Retry-After": delays[n]}) if n < 3 else "text") as server:
        question = endpoint.Question("one", "text", None, 0)
        written = Endpoint(server.url, MODEL).answers([1], lambda item: question, str, **SETTINGS)
        assert list(written) == [[(1, "text")]]
    assert [seconds for seconds in waited if seconds] == [7, 2, endpoint.LONGEST_WAIT]


SETTINGS = {"max_new_tokens": 5, "temperature": None}


def test_an_engine_that_cannot_serve_writes_no_file(write, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"endpoint {down}/v1/: cannot be reached \(.+\): start the engine there, or"):
        write(down)
    with engine(echo) as server:
        for models, message in (
            (server.models, "serves no model 'absent': give --served_model, it serves other, tiny"),
            ((200, '{"data": []}', {}), "serves no model 'absent': give --served_model, it serves none"),
            ((200, "hello", {}), "is not OpenAI-compatible: its list of models: not JSON .*: give the address of an"),
            ((200, "{}", {}), "is not OpenAI-compatible: its list of models: field data: field required: give the"),
            ((404, "", {}), "refused the request for its models: it answered 404: see the log of the engine, or give"),
            ((503, "loading", {}), r"refused the request for its models: it answered 503 \(loading\)"),
            ((403, "", {}), "answered 403: give its key in the variable MLLMREID_ENDPOINT_KEY"),
        ):
            server.models = models
            with pytest.raises(UserError, match=message):
                write(server.url, "--served_model", "absent")
        assert not server.requests
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="gave no answer in 0.3 s: start the engine there"):
            write(address, "--request_timeout", "0.3")
    assert not (tmp_path / "captions.jsonl").exists()


LOOPBACK = [
    "http://localhost:1",
    "http://127.0.0.1:1",
    "http://127.9.9.9:1/v1",
    "http://[::1]:1",
    "https://LOCALHOST:1",
]
REMOTE = [
    "http://10.0.0.2:1",
    "https://api.example.org/v1",
    "http://0.0.0.0:1",
    "http://127.1:1",
    "http://2130706433:1",
    "http://localhost.example.org:1",
    "http://[::ffff:10.0.0.1]:1",
    "http://127.0.0.1.example.org:1",
]


def test_nothing_is_sent_to_another_machine_unasked(monkeypatch, write, tmp_path):
    sent = []
    monkeypatch.setattr(Endpoint, "_owner", lambda self: sent.append(self.url))
    for url in LOOPBACK:
        there = Endpoint(url, MODEL)
        assert (there.host, there.remote, there._client_options()["trust_env"]) == ("localhost", False, False)
    sent.clear()
    for url in REMOTE:
        with pytest.raises(
            UserError, match=f"endpoint {re.escape(url)}.*: is another machine.*: give --remote true to"
        ):
            Endpoint(url, MODEL)
    with pytest.raises(UserError, match="is another machine, and data would leave this one: give --remote true to"):
        write("http://gpu-server:8000")
    assert not sent and not (tmp_path / "captions.jsonl").exists()
    for url in REMOTE:
        there = Endpoint(url, MODEL, remote=True)
        assert there.provenance == {"endpoint": there.host, "served_model": MODEL, "remote": True}
        assert there._client_options()["trust_env"] and there.host in url
    assert len(sent) == len(REMOTE)


def test_a_remote_engine_is_named_in_the_sidecar(monkeypatch, write):
    monkeypatch.setattr(endpoint, "_is_loopback", lambda host: False)
    with engine(echo) as server:
        records = write(server.url, "--remote", "true")
        assert {record.provenance["remote"] for record in records} == {True}
        assert records[0].provenance["endpoint"] == "127.0.0.1"
        monkeypatch.undo()
        with pytest.raises(UserError, match="holds texts written with endpoint '127.0.0.1', not 'localhost'"):
            write(server.url)


def test_a_proxy_of_the_environment_takes_nothing_of_this_machine_away(monkeypatch, write):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with engine(echo) as server:
        assert len(write(server.url)) == 12


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://localhost", "http://", "http://localhost:port", "http://[::1"]
)
def test_an_address_that_is_none(url):
    with pytest.raises(UserError, match="is no address: give one such as http://localhost:8000/v1"):
        Endpoint(url, MODEL)


def test_mistakes(write, people, monkeypatch):
    with pytest.raises(UserError, match="endpoint localhost: has a password in its address: give the key in MLLMREID_"):
        Endpoint("http://me:secret@localhost:1", MODEL)
    for more, name in (
        ({"served_model": "a"}, "served_model"),
        ({"remote": True}, "remote"),
        ({"requests_at_once": 3}, "requests_at_once"),
        ({"request_timeout": 3.0}, "request_timeout"),
    ):
        with pytest.raises(UserError, match=f"{name}: belongs to an engine: give --endpoint too, or leave it out"):
            EndpointArguments(**more)
    with pytest.raises(UserError, match="dtype bf16: the engine at --endpoint has its own: leave --dtype out"):
        write("http://localhost:1", "--dtype", "bf16")
    with pytest.raises(UserError, match="has no split val"):
        write("http://localhost:1", "--splits", "val")
    for name in ("httpx", "httpx2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="endpoint: needs the package httpx: pip install httpx"):
        Endpoint("http://localhost:1", MODEL)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_both_http_clients_write_the_same(write, monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, "httpx2" if name == "httpx" else "httpx", None)
    assert endpoint._http_client().__name__ == name
    with engine(lambda number, body: echo(number, body) if number else (500, "", {})) as server:
        assert len(write(server.url)) == 12
    with pytest.raises(UserError, match="cannot be reached"):
        write(server.url)


def test_a_broken_image_is_named_and_what_was_written_stays(write, people, tmp_path):
    last = sorted((people / "bounding_box_train").iterdir())[-1]
    last.write_bytes(b"no image")
    with engine(echo) as server, pytest.raises(UserError, match=last.name):
        write(server.url, "--captions_per_image", "1", "--prompts", "one")
    assert len(read_records(tmp_path / "captions.jsonl", CaptionRecord)) >= 4


def test_an_interrupt_ends_a_run_at_once_and_keeps_what_was_written(write, tmp_path):
    released = threading.Event()

    """Requests that are under way are given up: an answer may be minutes away."""

    def late(number, body):
        if number < 4:
            return echo(number, body)
        if number == 4:
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        released.wait(60)
        return "late"

    with engine(late) as server:
        with pytest.raises(KeyboardInterrupt):
            write(server.url)
        assert not released.is_set()  # no answer came, and the run did not wait for one
        released.set()
    assert 3 <= len(read_records(tmp_path / "captions.jsonl", CaptionRecord)) <= 4
