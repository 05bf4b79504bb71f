"""The gallery over HTTP: answers, refusals, many users at once, the end of the process."""

import asyncio
import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pytest
from PIL import Image

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.model import FORMAT
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.serving import failures, protection, running
from modeling_mllmreid.serving.protection import Access, Protection
from modeling_mllmreid.serving.server import build_app, protected, unknown_paths
from modeling_mllmreid.serving.service import GalleryService
from modeling_mllmreid.utils.errors import NotFound, TooLarge, Unavailable, UserError
from modeling_mllmreid.utils.outputs import try_lock

testclient = pytest.importorskip("starlette.testclient")
JSONResponse = pytest.importorskip("starlette.responses").JSONResponse
OWN = "http://127.0.0.1:7860"


def client_of(app):
    return testclient.TestClient(app, base_url=OWN, raise_server_exceptions=False)


@pytest.fixture
def images(gallery, crops):
    images = crops(12)
    gallery.add(images, [CropInfo(camera_id=n % 3, person="Ida" if n == 5 else None) for n in range(12)])
    return images


@pytest.fixture
def app(gallery, images, tmp_path):
    return build_app(GalleryService(gallery, Audit(tmp_path / "audit")))


@pytest.fixture
def client(app):
    return client_of(protected(app, Access(), "127.0.0.1"))


def upload(*paths):
    return [("photos", (Path(path).name, Path(path).read_bytes(), "image/png")) for path in paths]


def test_answers(client, gallery, images):
    assert client.get("/health").json() == {"status": "ok"}
    answer = client.post("/api/search", files=upload(images[3]), data={"top_k": 4, "cameras": [0, 1]}).json()
    found = gallery.search(images[3], 4, where=Where(cameras=[0, 1]))
    assert [(hit["id"], hit["distance"], hit["beyond"]) for hit in answer["hits"]] == [
        (hit.id, hit.distance, hit.beyond) for hit in found.hits
    ]
    assert (answer["searched"], answer["nobody"], answer["threshold"]) == (8, False, 0.05)
    assert client.post("/api/search", files=upload(images[4]), data={"cameras": 0}).json()["nobody"]
    by_id = client.post("/api/search", data={"id": answer["hits"][0]["id"], "top_k": 1}).json()
    assert by_id["hits"][0]["id"] != answer["hits"][0]["id"]
    compared = client.post("/api/compare", files=upload(images[0], images[0])).json()
    assert compared == {"distance": 0, "threshold": 0.05, "probability": None}
    picture = client.get(f"/api/rows/{found.hits[0].id}/picture")
    assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"
    assert client.get("/api/info").json()["rows"] == 12


def test_answers_do_not_name_the_folders_of_the_server(client, gallery, images, tmp_path, encoder):
    named = [hit["file_name"] for hit in client.post("/api/search", files=upload(images[3])).json()["hits"]]
    assert named[0] == "0003.png" and len(named) == 10
    shown = client.post("/api/delete", json={"where": ["person=Ida"]}).json()["rows"]
    assert [row["file_name"] for row in shown] == ["0005.png"]
    Path(images[5]).write_bytes(Path(images[6]).read_bytes())
    changed = client.get(f"/api/rows/{shown[0]['id']}/picture")
    assert changed.status_code == 404 and changed.json()["error"].startswith(
        f"id {shown[0]['id'][:16]}: its image file is missing, broken or not the one that was added: restore it"
    )
    Path(images[5]).unlink()
    missing = client.get(f"/api/rows/{shown[0]['id']}/picture")
    assert (missing.status_code, missing.json()) == (404, changed.json())
    other = Gallery.create(tmp_path / "other", type(encoder)(name=f"{tmp_path}/runs/model"))
    app = build_app(GalleryService(other, Audit(tmp_path / "audit")))
    assert client_of(app).get("/api/info").json()["model"]["model"] == "model"


def test_overlay(client, gallery, images, encoder, monkeypatch, tmp_path):
    def relevance(self, image, feature):
        return (self.encode([image])[0] * feature).reshape(8, 4, 3).sum(2)

    monkeypatch.setattr(type(encoder), "relevance", relevance, raising=False)
    ids = {hit.file_name: hit.id for hit in gallery.find()}

    def drawn(**request):
        answer = client.post("/api/overlay", **request)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
        return Image.open(io.BytesIO(answer.content))

    two = drawn(files=upload(images[0], images[1]))
    row = drawn(files=upload(images[0]), data={"id": ids[images[1]]})
    assert two.size == row.size == (64, 64) and two.tobytes() == row.tobytes()
    service = GalleryService(gallery, Audit(tmp_path / "audit"))
    first, second = service.overlay([Image.open(images[0]).convert("RGB")], Image.open(images[1]).convert("RGB"))
    assert two.crop((0, 0, 32, 64)).tobytes() == first.tobytes()
    assert two.crop((32, 0, 64, 64)).tobytes() == second.tobytes()
    assert drawn(files=upload(images[0], images[2])).tobytes() != two.tobytes()
    assert [line["action"] for line in Audit(tmp_path / "audit").lines()] == ["overlay"] * 3
    for request, status, message in (
        ({"files": upload(images[0])}, 400, "photos: 1 were sent: send two, or one and the id of a row"),
        ({"files": upload(*images[:3])}, 400, "photos: 3 were sent: send two, or one and the id of a row"),
        ({"files": upload(*images[:2]), "data": {"id": ids[images[1]]}}, 400, "photos: 2 were sent: send two"),
        ({"files": upload(images[0]), "data": {"id": "0" * 64}}, 404, f"id {'0' * 16}: is not in the gallery"),
        ({"files": upload(images[0]), "data": {"id": "x"}}, 400, "id 'x': is no SHA-256 digest"),
    ):
        answer = client.post("/api/overlay", **request)
        assert answer.status_code == status and answer.json()["error"].startswith(message), answer.text


@pytest.mark.parametrize("error", [NotFound, TooLarge, Unavailable, UserError])
def test_the_status_depends_on_the_type_of_the_error_and_not_on_its_text(client, monkeypatch, error):
    status = {NotFound: 404, TooLarge: 413, Unavailable: 503, UserError: 400}[error]
    for text in ("x: is not in the gallery", "x: cannot be written"):
        monkeypatch.setattr(GalleryService, "info", lambda self, text=text: (_ for _ in ()).throw(error(text)))
        answer = client.get("/api/info")
        assert (answer.status_code, answer.json()) == (status, {"error": text})


def removed(place):
    shutil.rmtree(place)
    return "is no gallery: create one with gallery add, or restore it"


def replaced_by_a_file(place):
    shutil.rmtree(place)
    place.write_text("no folder")
    return rf"LanceError\(IO\): .*{place}/rows.lance/_versions: Not a directory .*: check the place, or restore a copy"


def without_its_rows(place):
    shutil.rmtree(place / "rows.lance" / "data")
    return rf"External error: Not found: {place}/rows.lance/data/\w+.lance: check the place, or restore a copy"


def changed(place, **values):
    data = lance.dataset(str(place / "rows.lance"))
    metadata = json.loads(data.schema.metadata[b"mllmreid_gallery"])
    data.update_schema_metadata({"mllmreid_gallery": json.dumps({**metadata, **values})})


def written_by_a_newer_version(place):
    changed(place, format=FORMAT + 1, news="x")
    return "a newer version of this package wrote it: install that version"


def with_another_model(place):
    changed(place, weights="1" * 64)
    return "got another model in the meantime: open it again"


@pytest.mark.parametrize(
    "change", [removed, replaced_by_a_file, without_its_rows, written_by_a_newer_version, with_another_model]
)
def test_a_gallery_that_cannot_be_read_any_more(client, gallery, images, change):
    place = Path(gallery.store.place)
    copy = place.with_name("copy")
    shutil.copytree(place, copy)
    if change is not without_its_rows:  # these are read once
        assert client.get("/api/info").status_code == 200
    reason = change(place)
    for ask in (
        lambda: client.post("/api/search", files=upload(images[3])),
        lambda: client.get("/api/info"),
        lambda: client.post("/api/delete", json={"cameras": [0]}),
    ):
        answer = ask()
        assert answer.status_code == 503, answer.text
        assert re.fullmatch(f"gallery {place}: {reason}", answer.json()["error"]), answer.text
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    copy.rename(place)
    assert client.post("/api/search", files=upload(images[3])).status_code == 200


def test_an_audit_trail_that_cannot_be_written(client, images, tmp_path):
    (tmp_path / "audit").write_text("no folder")
    answer = client.post("/api/search", files=upload(images[3]))
    assert answer.status_code == 503 and "audit" in answer.json()["error"] and "cannot be written" in answer.text


def test_rows_are_erased_after_a_look(client, gallery):
    asked = {"where": ["person=Ida"]}
    shown = client.post("/api/delete", json=asked).json()
    assert [row["person"] for row in shown["rows"]] == ["Ida"] and shown["erased"] == 0
    assert client.get("/api/info").json()["rows"] == 12
    refused = client.post("/api/delete", json={**asked, "confirm": True})
    assert (refused.status_code, gallery.info()["rows"]) == (400, 12)
    assert refused.json()["error"].startswith("delete: give the ids of the rows that were shown")
    ids = {"ids": [row["id"] for row in shown["rows"]], "confirm": True}
    assert client.post("/api/delete", json=ids).json() == {"erased": 1, "traces": 0}
    assert gallery.info()["rows"] == 11
    assert client.get(f"/api/rows/{ids['ids'][0]}/picture").status_code == 404


def test_decisions(client, gallery):
    ids = [hit.id for hit in gallery.find(Where(cameras=[0]))]
    made = client.post("/api/decisions", json={"action": "confirm", "ids": ids, "person": "Eva"}).json()
    assert made["person"] == "Eva" and client.get("/api/decisions").json() == [made]
    assert client.post("/api/decisions", json={"action": "undo"}).json() == made
    assert client.get("/api/decisions").json() == []
    answer = client.post("/api/groups", json={})
    assert (answer.status_code, "has no calibration" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "form", "status", "message"),
    [
        ("search", {}, 400, "query: give a photo, words or an id"),
        ("search", {"top_k": "x"}, 422, "top_k: "),
        ("search", {"id": "a", "top_k": 0}, 400, "top_k 0: give 1 to 1000"),
        ("search", {"id": "a", "top_k": 1001}, 400, "top_k 1001: give 1 to 1000"),
        ("search", {"id": "a", "threshold": 3}, 422, "threshold: "),
        ("search", {"id": "a", "since": "2026-11-28"}, 400, "time '2026-11-28': has no zone"),
        ("search", {"id": "a", "where": "colour=red"}, 400, "no such column: the columns are id"),
        ("search", {"id": "0" * 64}, 404, "is not in the gallery"),
        ("search", {"words": "a man"}, 400, "cannot embed words"),
        ("delete", {}, 422, "request"),
        ("compare", {}, 422, "photos: "),
    ],
)
def test_mistakes(client, path, form, status, message):
    answer = client.post(f"/api/{path}", data=form)
    assert answer.status_code == status and message in answer.json()["error"], answer.text
    assert "Traceback" not in answer.text


def test_photos_that_cannot_be_used(client, tmp_path):
    Image.new("RGB", (192, 108)).save(tmp_path / "scene.png")
    answer = client.post("/api/search", files=upload(tmp_path / "scene.png"))
    assert answer.status_code == 400 and "scene.png: is 192 x 108 pixels, wider than a person" in answer.json()["error"]
    assert client.post("/api/search", files=upload(tmp_path / "scene.png"), data={"any_shape": True}).status_code == 200
    html = client.post("/api/search", files=[("photos", ("<img src=x>.png", b"no image", "image/png"))])
    assert (html.status_code, html.headers["content-type"]) == (400, "application/json")


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


START = b'--x\r\nContent-Disposition: form-data; name="photos"; filename="%s"\r\n\r\n'


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


def test_faults_are_one_line(client, app, monkeypatch):
    for error, status, message in (
        (ImportError("needs the extra `x`"), 501, "needs the extra `x`"),
        (RuntimeError("secret"), 500, "a fault of the server, not yours: RuntimeError"),
    ):
        monkeypatch.setattr(GalleryService, "info", lambda self, error=error: (_ for _ in ()).throw(error))
        answer = client.get("/api/info")
        assert (answer.status_code, answer.json()) == (status, {"error": message})


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
        client = testclient.TestClient(served, base_url=OWN, client=(address, 5))
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


def test_searches_and_changes_at_the_same_time(client, gallery, crops):
    """Threads of one server read, decide and erase at once: every request has its answer."""
    more = crops(40, start=100)
    gallery.add(more, CropInfo(camera_id=9))
    photo, ids = upload(more[0]), [hit.id for hit in gallery.find(Where(cameras=[9]))]

    def change(name):
        answer = client.post("/api/decisions", json={"action": "confirm", "ids": [name]})
        gone = client.post("/api/delete", json={"ids": [name], "confirm": True})
        return answer.status_code, gone.status_code, gone.json()

    with ThreadPoolExecutor(8) as pool:
        changes = [pool.submit(change, name) for name in ids[:20]]
        searches = [pool.submit(client.post, "/api/search", files=photo) for _ in range(60)]
        assert {one.result().status_code for one in searches} == {200}
        assert [one.result() for one in changes] == [(200, 200, {"erased": 1, "traces": 0})] * 20
    assert {hit.id for hit in gallery.find(Where(cameras=[9]))} == set(ids[20:])


@pytest.mark.parametrize("headers", [{"host": "["}, {"host": "x@127.0.0.1"}, {"origin": "http://["}])
def test_addresses_that_are_not_valid(client, headers):
    assert client.get("/health", headers=headers).status_code == 403


def test_unknown_paths_are_one_line(client):
    assert client.get("/api/nothing").json() == {"error": "Not Found"}
    assert client.put("/api/search").json() == {"error": "Method Not Allowed"}


def test_unknown_paths_are_one_line_next_to_a_page(app):
    unknown_paths(app)

    async def page(scope, receive, send):  # answers whatever is left
        await JSONResponse({"detail": "page"})(scope, receive, send)

    app.mount("/", page)
    client = client_of(protected(app, Access(), "127.0.0.1"))
    for answer, status in ((client.get("/api/nothing"), 404), (client.get("/api/search"), 405)):
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert client.get("/api/info").json()["rows"] == 12
    assert client.get("/anything").json() == {"detail": "page"}


def test_a_body_that_is_no_json(client):
    answer = client.post("/api/delete", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (422, {"error": "request: JSON decode error"})
