"""The gallery over HTTP: answers, refusals, many users at once, the end of the process."""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.serving import running
from modeling_mllmreid.serving.protection import Access, Protection
from modeling_mllmreid.serving.server import build_app, protected
from modeling_mllmreid.serving.service import GalleryService
from modeling_mllmreid.utils.errors import UserError

testclient = pytest.importorskip("starlette.testclient")
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
    assert client.get("/api/info", headers={"authorization": "Basic ####"}).status_code == 401
    assert (
        client.get("/api/info", headers=good).status_code == client.get("/api/info", headers=token).status_code == 200
    )
    client.post("/api/search", files=upload(images[0]), headers=good)
    assert [line["who"] for line in Audit(tmp_path / "audit").lines()] == ["ida"]


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


def test_fifty_searches_at_once_and_a_graceful_end(tmp_path, crops):
    images = [Path(image) for image in crops(20)]
    place = tmp_path / "served"
    gallery = Gallery.create(place, "pedestrians-small")
    gallery.add(images)
    command = [sys.executable, "-m", "modeling_mllmreid", "serve", "--gallery", str(place), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    expected = {image: [hit.id for hit in gallery.search(str(image)).hits] for image in images}
    with subprocess.Popen(command, **pipes) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert url, process.stderr.read()
            with ThreadPoolExecutor(50) as pool:
                asked = [images[n % 20] for n in range(50)]
                assert list(pool.map(lambda image: ask(url[0], image), asked)) == [expected[image] for image in asked]
            # SIGTERM while a request is half sent: it is answered.
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
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""
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
