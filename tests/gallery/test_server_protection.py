"""Who may use the server, and how much: sizes of uploads, pages of other sites, passwords, addresses."""

import asyncio
import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from served import OWN, START, client_of, upload

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.serving import failures, protection
from modeling_mllmreid.serving.protection import Access, Protection
from modeling_mllmreid.serving.server import protected
from modeling_mllmreid.utils.errors import UserError


def picture_file(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "sizes", [[(5000, 5001)], [(3000, 5000), (3000, 5000)], [(13_000, 14_000)]], ids=["one", "together", "bomb"]
)
def test_pictures_with_too_many_pixels(client, sizes):
    photos = [("photos", (f"{n}.png", picture_file(*size))) for n, size in enumerate(sizes)]
    answer = client.post("/api/search", files=photos)
    names = ", ".join(f"{n}.png" for n in range(len(sizes)))
    message = f"{names}: more than 25 million pixels: send crops of one person"
    assert (answer.status_code, answer.json()) == (413, {"error": message})


async def sent(app, parts, headers=(), boundary="x"):
    """Sends a form in parts to an application; returns the status, the JSON, and how many parts it took."""
    taken, answer = [], []

    async def receive():
        taken.append(parts[len(taken)])
        return {"type": "http.request", "body": taken[-1], "more_body": len(taken) < len(parts)}

    async def send(message):
        answer.append(message)

    known = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=" + boundary.encode())]
    scope = {"type": "http", "method": "POST", "path": "/api/search", "raw_path": b"", "query_string": b""}
    scope |= {"headers": [*known, *headers], "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}
    await app(scope, receive, send)
    return answer[0]["status"], json.loads(b"".join(part.get("body", b"") for part in answer[1:])), len(taken)


def test_a_large_file_is_refused_while_it_arrives(app, images):
    small, kib = Path(images[0]).read_bytes(), bytes(1024)
    limited = Protection(app, Access(), "127.0.0.1", most_bytes=2**20, file_bytes=64 * 1024)
    large = [START % b"a.png", small, b"\r\n", START % b"big.png", *[kib] * 900, b"\r\n--x--\r\n"]
    status, error, taken = asyncio.run(sent(limited, large))
    assert (status, error["error"]) == (413, "big.png: has more than 0 MiB: send a crop of one person")
    assert taken == 4 + 64 + 1
    second = [(b"content-type", b"multipart/form-data; boundary=y")]
    assert asyncio.run(sent(limited, large, headers=second)) == (status, error, taken)
    several = [START % b"a.png", small, b"\r\n"] * 3 + [b"--x--\r\n"]
    assert asyncio.run(sent(limited, several))[0] == 200
    # A form that is not valid is refused by the application, as is one whose boundary is too long.
    assert asyncio.run(sent(limited, [b"no form", *[kib] * 900]))[0] == 400
    assert asyncio.run(sent(limited, several, boundary="x" * 1000))[0] == 400


def test_texts_have_a_smaller_limit(app, monkeypatch):
    monkeypatch.setattr(protection, "TEXT_BYTES", 2**20)
    client = client_of(protected(app, Access(), "127.0.0.1"))
    answer = client.post("/api/delete", json={"ids": ["0" * 64] * 20_000})
    message = "the request has more than 1 MiB: send less at one time"
    assert (answer.status_code, answer.json()) == (413, {"error": message})


def test_large_bodies_are_refused_before_they_are_read(app):
    client = client_of(Protection(app, Access(), "127.0.0.1", most_bytes=2**20, file_bytes=2**20))
    answer = client.post("/api/search", files=[("photos", ("a.png", bytes(2**21)))])
    assert (answer.status_code, answer.json()["error"][:32]) == (413, "the request has more than 1 MiB:")
    sent = []

    def stream():
        for _ in range(64):
            sent.append(1)
            yield bytes(2**17)

    answer = client.post("/api/search", content=stream(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


def test_pages_of_other_sites_are_refused(client):
    assert client.get("/api/info", headers={"host": "evil.example:7860"}).status_code == 403
    for host in ("localhost:1", "127.0.0.1", "[::1]:7860"):
        assert client.get("/api/info", headers={"host": host}).status_code == 200
    answer = client.post(
        "/api/delete", json={"cameras": [0], "confirm": True}, headers={"origin": "http://evil.example"}
    )
    assert answer.status_code == 403 and client.get("/api/info").json()["rows"] == 12
    assert client.get("/api/info", headers={"origin": OWN}).status_code == 200


def test_no_other_site_shows_the_page_in_a_frame(client):
    for answer in (client.get("/api/info"), client.get("/api/info", headers={"host": "evil.example"})):
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"


def test_the_hub_may_show_a_space_in_a_frame(app):
    client = client_of(protected(app, Access(), "127.0.0.1", frames="https://huggingface.co"))
    headers = client.get("/health").headers
    assert headers["content-security-policy"] == "frame-ancestors https://huggingface.co"
    assert "x-frame-options" not in headers


def basic(user, password):
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_passwords_and_tokens(app, tmp_path, images):
    client = client_of(protected(app, Access("ida", "correct horse", "t" * 20), "0.0.0.0"))
    good, token = basic("ida", "correct horse"), {"authorization": "Bearer " + "t" * 20}
    assert client.get("/health").status_code == 200
    for headers in ({}, basic("ida", "wrong horse"), basic("eva", "correct horse"), {"authorization": "Bearer tt"}):
        answer = client.get("/api/info", headers=headers)
        assert (answer.status_code, answer.json()) == (
            401,
            {"error": "user and password or token are missing or wrong"},
        )
    for wrong in (b"Basic ####", b"Basic \xe9", b"Basic " + base64.b64encode(b"\xff:x"), b"Basic", b"Bearer \xe9"):
        assert client.get("/api/info", headers={"authorization": wrong}).status_code == 401
    assert (
        client.get("/api/info", headers=good).status_code == client.get("/api/info", headers=token).status_code == 200
    )
    client.post("/api/search", files=upload(images[0]), headers=good)
    assert [line["who"] for line in Audit(tmp_path / "audit").lines()] == ["ida"]


def test_an_address_with_wrong_passwords_waits_and_others_do_not(app):
    time = [1000.0]
    limits = {"most_bytes": 2**20, "file_bytes": 2**20, "clock": lambda: time[0]}
    served = Protection(app, Access("ida", "correct horse"), "0.0.0.0", **limits)
    good, wrong = basic("ida", "correct horse"), basic("ida", "wrong horse")

    def ask(address, headers):
        client = client_of(served, client=(address, 5))
        return client.get("/api/info", headers=headers)

    for _ in range(30):  # a browser asks without a password first
        assert ask("10.0.0.1", {}).status_code == 401
    for _ in range(10):
        assert ask("10.0.0.1", wrong).status_code == 401
        time[0] += 1
    for headers in (wrong, good, {}):
        answer = ask("10.0.0.1", headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "59")
        assert answer.json() == {"error": "too many wrong passwords from 10.0.0.1: try again in 59 s"}
    assert ask("10.0.0.2", good).status_code == 200 and ask("10.0.0.2", wrong).status_code == 401
    time[0] += 58.9
    assert ask("10.0.0.1", good).headers.get("retry-after") == "1"
    time[0] += 0.1
    assert ask("10.0.0.1", good).status_code == 200
    # Then it has all its trials again.
    for _ in range(10):
        assert ask("10.0.0.1", wrong).status_code == 401
    assert ask("10.0.0.1", good).status_code == 429
    # One client has all addresses of an IPv6 network.
    for last in range(10):
        assert ask(f"2001:db8::{last}", wrong).status_code == 401
    assert ask("2001:db8::ff", good).status_code == 429 and ask("2001:db8:0:1::1", good).status_code == 200


def test_a_bounded_number_of_addresses_is_remembered(monkeypatch):
    monkeypatch.setattr(failures, "MOST_ADDRESSES", 3)
    known = failures.Failures(lambda: 0.0)
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"):
        for _ in range(10):
            known.add(address)
    assert [known.wait(f"10.0.0.{n}") for n in range(1, 5)] == [0, 60, 60, 60]


@pytest.mark.parametrize(
    ("host", "user", "environment", "message"),
    [
        ("0.0.0.0", None, {}, "host 0.0.0.0: other machines can reach it: set MLLMREID_PASSWORD and --user, or"),
        ("0.0.0.0", "ida", {}, "--user is given without MLLMREID_PASSWORD: give both"),
        ("127.0.0.1", None, {"MLLMREID_PASSWORD": "12345678"}, "MLLMREID_PASSWORD is given without --user: give both"),
        ("::", None, {"MLLMREID_TOKEN": "1234567"}, "MLLMREID_TOKEN: has fewer than 8 characters: set a longer one"),
    ],
)
def test_an_open_address_needs_a_secret(host, user, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Access.of(host, user)


@pytest.mark.parametrize("headers", [{"host": "["}, {"host": "x@127.0.0.1"}, {"origin": "http://["}])
def test_addresses_that_are_not_valid(client, headers):
    assert client.get("/health", headers=headers).status_code == 403
