"""The gallery over HTTP: answers, refusals, changes at the same time."""

import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pytest
from PIL import Image
from served import client_of, upload

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.model import FORMAT
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.serving.protection import Access
from modeling_mllmreid.serving.server import build_app, protected, unknown_paths
from modeling_mllmreid.serving.service import GalleryService
from modeling_mllmreid.utils.errors import NotFound, TooLarge, Unavailable, UserError

JSONResponse = pytest.importorskip("starlette.responses").JSONResponse


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
    unknown = {"probability": None, "pair_probability": None, "pair_top": None, "pair_gallery": None, "reason": None}
    assert compared == {"distance": 0, "threshold": 0.05, **unknown}
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
    asks = (
        lambda: client.post("/api/search", files=upload(images[3])),
        lambda: client.get("/api/info"),
        lambda: client.post("/api/delete", json={"cameras": [0]}),
    )
    for ask in asks[:1] if change is replaced_by_a_file else asks:  # Lance tries again for two seconds
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


def test_the_rows_of_a_person_on_a_photo(client, gallery, images):
    asked = lambda **form: client.post("/api/person", files=upload(images[3]), data=form)  # noqa: E731
    nearest, *_ = client.post("/api/search", files=upload(images[3])).json()["hits"]
    assert [row["id"] for row in asked(threshold=2.0).json()["rows"]][0] == nearest["id"]
    assert len(asked(threshold=2.0).json()["rows"]) == 12
    assert {row["camera_id"] for row in asked(threshold=2.0, cameras=1).json()["rows"]} == {1}
    answer = asked(threshold=1e-5).json()
    rows, distances = answer["rows"], [row["distance"] for row in answer["beyond"]]
    assert [row["distance"] < 1e-5 for row in rows] == [True]
    assert len(distances) == 5 and distances == sorted(distances) and distances[0] > 1e-5
    assert client.post("/api/delete", json={"ids": [row["id"] for row in rows], "confirm": True}).json()["erased"] == 1
    assert gallery.info()["rows"] == 11
    assert client.post("/api/person", data={"threshold": 1}).status_code == 422


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


def test_faults_are_one_line(client, app, monkeypatch):
    for error, status, message in (
        (ImportError("needs the extra `x`"), 501, "needs the extra `x`"),
        (RuntimeError("secret"), 500, "a fault of the server, not yours: RuntimeError"),
    ):
        monkeypatch.setattr(GalleryService, "info", lambda self, error=error: (_ for _ in ()).throw(error))
        answer = client.get("/api/info")
        assert (answer.status_code, answer.json()) == (status, {"error": message})


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
