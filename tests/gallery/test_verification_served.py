"""Verified searches and comparisons over HTTP and on the page."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pair_gallery import FUSION, copy_gallery, make_pair_gallery
from served import client_of, upload

from modeling_mllmreid.evaluation.pair_scores import score_shortlist
from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.encoder import ModelEncoder
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.results import probability_note
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.serving.server import build_app
from modeling_mllmreid.serving.service import GalleryService, Photo
from modeling_mllmreid.text.reasons import NOTE


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_pair_gallery(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def copied(trained, tmp_path):
    return copy_gallery(trained, tmp_path)


@pytest.fixture
def service(trained, tmp_path):
    return GalleryService(trained.gallery, Audit(tmp_path / "audit"))


@pytest.fixture
def client(service):
    return client_of(build_app(service))


def test_the_end_points(trained, service, client):
    query = trained.queries[0]
    found = trained.gallery.search(query, 5, verify_top=3)
    answer = client.post("/api/search", files=upload(query), data={"top_k": 5, "verify_top": 3}).json()
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in found.hits]
    for hit, own in zip(answer["hits"], found.hits, strict=True):
        assert hit["probability"] == (None if own.probability is None else pytest.approx(own.probability, abs=1e-5))
    assert answer["verification"] == {"rows": 3, "unopened": [], "top": 20, "gallery": found.searched}
    plain = client.post("/api/search", files=upload(query), data={"top_k": 5}).json()
    assert plain["verification"] is None and {hit["probability"] for hit in plain["hits"]} == {None}
    assert [line.get("verify_top") for line in service.audit.lines()] == [3, None]
    refused = client.post("/api/search", files=upload(query), data={"verify_top": 101})
    assert (refused.status_code, refused.json()) == (400, {"error": "verify_top 101: give 0 to 100"})
    words = client.post("/api/search", data={"words": "red", "verify_top": 3})
    assert words.status_code == 400 and "verify_top: compares photos" in words.json()["error"]


def test_a_row_whose_picture_is_gone_is_no_query(trained, copied, tmp_path):
    client = client_of(build_app(GalleryService(copied, Audit(tmp_path / "audit"))))
    row = copied.search(trained.queries[0], 1).hits[0]
    Path(row.file_name).unlink()
    answer = client.post("/api/search", data={"id": row.id, "verify_top": 3})
    assert answer.status_code == 404 and str(tmp_path) not in answer.text
    assert "verify_top compares it: restore it, give a photo, or leave out verify_top" in answer.json()["error"]


def test_a_threshold_file_that_breaks_is_no_mistake_of_a_client(trained, tmp_path):
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    gallery = Gallery.create(tmp_path / "gallery", ModelEncoder(ModelArguments(str(model))))
    gallery.add(trained.queries[1:4])
    client = client_of(build_app(GalleryService(gallery, Audit(tmp_path / "audit"))))
    stored = json.loads((model / "threshold.json").read_text())
    stored[next(iter(stored))]["distance"] = float("nan")
    (model / "threshold.json").write_text(json.dumps(stored))
    one, other = trained.queries[:2]
    for answer in (
        client.post("/api/search", files=upload(one)),
        client.post("/api/search", files=upload(one), data={"verify_top": 2}),
        client.post("/api/compare", files=upload(one, other)),
        client.post("/api/groups", json={}),
    ):
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("model/threshold.json: holds no thresholds (field ")
    (model / "threshold.json").unlink()
    answer = client.post("/api/search", files=upload(one), data={"verify_top": 2})
    assert answer.status_code == 400 and str(tmp_path) not in answer.text
    assert "verify_top: the checkpoint of model has no fusion of pair scores" in answer.json()["error"]


def test_a_comparison_has_the_probability_of_the_pair_model(trained, service, client):
    one, other = trained.queries[:2]
    scores, _ = score_shortlist(
        trained.encoder.model, trained.encoder.processor, [one], [other], np.array([[0]]), progress=False
    )
    compared = client.post("/api/compare", files=upload(one, other)).json()
    stated = float(FUSION.pair_probability(np.array(compared["distance"]), scores[0, 0], 40))
    assert compared["pair_probability"] == pytest.approx(stated, abs=1e-5)
    assert (compared["pair_top"], compared["pair_gallery"]) == (20, 40)
    turned = client.post("/api/compare", files=upload(other, one)).json()
    assert turned["pair_probability"] == pytest.approx(stated, abs=1e-4)


def test_many_threads_share_the_model(trained, service, monkeypatch):
    """Pairs and images of many users are computed one after the other, and each gets what it gets alone."""
    busy, together = threading.Lock(), []
    reads, embeds = type(trained.encoder.model).read_images, type(trained.encoder.model).image_features

    def alone(function):
        def run(*arguments, **options):
            if not busy.acquire(blocking=False):
                together.append(function)
                return function(*arguments, **options)
            try:
                return function(*arguments, **options)
            finally:
                busy.release()

        return run

    monkeypatch.setattr(type(trained.encoder.model), "read_images", alone(reads))
    monkeypatch.setattr(type(trained.encoder.model), "image_features", alone(embeds))
    photos = [Photo(Path(query).read_bytes()) for query in trained.queries[:4]]

    def ask(number):
        return service.search([photos[number % 4]], k=6, verify_top=5 * (number % 2 == 0))

    single = [ask(number) for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(ask, range(16))):
            expected = single[number % 4]
            assert [hit.id for hit in found.hits] == [hit.id for hit in expected.hits]
            assert (found.verification is None) == (number % 2 == 1)
    assert together == []


@pytest.mark.slow
def test_the_page(trained, tmp_path):
    from browser_page import BROWSER, Page, Server, playwright  # it skips the test without a browser

    query, other = trained.queries[:2]
    server = Server(trained.root / "gallery", "--audit", str(tmp_path / "audit"))
    try:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = Page(browser, server.url)
            page.upload("photos", query)
            page.page.get_by_text("More", exact=True).click()
            page.fill(verify="4")
            page.field("verify").press("Enter")
            # The slider shows the number once the page has taken it.
            page.page.wait_for_function("document.querySelector('#verify input[type=range]').value === '4'")
            answer = page.answer("search", "verdict", "verified")
            found = trained.gallery.search(query, 10, verify_top=4)
            note = probability_note(20, found.searched)
            assert answer.splitlines()[1:] == [f"4 rows verified, most probable first; the probability {note}"]
            shown = page.captions("results", 10)
            assert [float(lines[0].split()[1]) for lines in shown] == pytest.approx(
                [hit.distance for hit in found.hits], abs=1e-4
            )
            assert [lines[1] for lines in shown[:4]] == [f"{hit.probability:.1%}" for hit in found.hits[:4]]
            assert not any("%" in line for lines in shown[4:] for line in lines)
            page.tab("Compare")
            page.upload("first", query)
            page.upload("second", other)
            lines = page.answer("compare", "comparison", "pair model").splitlines()
            service = GalleryService(trained.gallery, Audit(tmp_path / "own"))
            own = service.compare(*(Photo(Path(name).read_bytes()) for name in (query, other)))
            assert lines[1].startswith(f"embedding: {own.probability:.1%} probability of one person, if half of the")
            stated = f"pair model: {own.pair_probability:.1%} probability of one person; it {probability_note(20, 40)}"
            assert lines[2:] == [stated]
            page.page.get_by_label("Let the model describe both crops").check()
            lines = page.answer("compare", "comparison", NOTE).splitlines()[3:]
            reason = service.compare(*(Photo(Path(name).read_bytes()) for name in (query, other)), reasons=True).reason
            assert lines[2:4] == [f"first: {reason.first}".rstrip(), f"second: {reason.second}".rstrip()]
            assert lines[4:] == reason.lines("first", "second")
            assert page.errors == []
            browser.close()
    finally:
        server.stop()
