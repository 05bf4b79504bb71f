"""What the server and the page do: batches of concurrent queries, limits, comparisons, audit lines."""

import io
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.evaluation.calibration import Calibration
from modeling_mllmreid.gallery.audit import Audit, query_digest
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.person import BEYOND
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.serving import batching, service
from modeling_mllmreid.serving.batching import BatchingEncoder
from modeling_mllmreid.serving.service import GalleryService, Photo
from modeling_mllmreid.serving.uploads import Memory
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def served(gallery, crops, tmp_path):
    images = crops(12)
    gallery.add(images, [CropInfo(camera_id=n % 3) for n in range(12)])
    return GalleryService(gallery, Audit(tmp_path / "audit")), images


def photo(path, **options):
    return Photo(Path(path).read_bytes(), Path(path).name, **options)


class SlowEncoder:
    """Waits until it may go on; refuses the image 13."""

    def __init__(self):
        self.gate, self.sizes = threading.Event(), []

    def encode(self, images):
        self.gate.wait(10)
        self.sizes.append(len(images))
        if 13 in images:
            raise UserError("13: is refused")
        return np.array(images, np.float32)[:, None]


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_queries_that_wait_are_one_pass_and_an_error_is_of_one_query(monkeypatch):
    monkeypatch.setattr(batching, "BATCH", 8)
    encoder = SlowEncoder()
    shared = BatchingEncoder(encoder)
    with ThreadPoolExecutor(13) as pool:
        first = pool.submit(shared.encode, [0])
        wait_until(lambda: shared.passes == 1)
        others = [pool.submit(shared.encode, [number, number + 100]) for number in range(1, 12)]
        wrong = pool.submit(shared.encode, [13])
        wait_until(lambda: shared._waiting.qsize() == 12)
        encoder.gate.set()
        assert first.result() == [[0]]
        for number, other in enumerate(others, start=1):
            np.testing.assert_array_equal(other.result(), [[number], [number + 100]])
        with pytest.raises(UserError, match="13: is refused"):
            wrong.result()
    assert encoder.sizes[0] == 1 and encoder.sizes[1] == 8 and len(encoder.sizes) < 12


def test_images_of_a_pass_are_released():
    class Encoder:
        def encode(self, images):
            return np.zeros((len(images), 1), np.float32)

    shared, image = BatchingEncoder(Encoder()), Image.new("RGB", (4, 4))
    known = weakref.ref(image)
    shared.encode([image])
    del image
    wait_until(lambda: known() is None)


def test_memory_that_many_threads_share():
    memory, order, hold = Memory(100), [], threading.Event()

    def use(name, size):
        with memory.held(size):
            order.append(name)
            assert memory.used <= 100
            hold.wait(10)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(use, "first", 60)
        wait_until(lambda: order == ["first"])
        pool.submit(use, "small", 40)
        wait_until(lambda: order == ["first", "small"])
        # More than there is counts as all. A small one does not overtake it.
        pool.submit(use, "large", 1000)
        wait_until(memory._turn.locked)
        later = pool.submit(use, "later", 1)
        time.sleep(0.05)
        assert order == ["first", "small"]
        hold.set()
        later.result()
    assert order == ["first", "small", "large", "later"] and memory.used == 0


def test_photos_of_all_requests_share_a_memory(served, monkeypatch):
    own, images = served
    monkeypatch.setattr(own, "memory", Memory(service.PIXEL_BYTES * 3 * 32 * 64))
    gate, sizes, encode = threading.Event(), [], own.gallery.encoder.encoder.encode

    def slow(batch):
        sizes.append(len(batch))
        gate.wait(10)
        return encode(batch)

    monkeypatch.setattr(own.gallery.encoder.encoder, "encode", slow)
    with ThreadPoolExecutor(10) as pool:
        found = [pool.submit(own.search, [photo(images[n])], k=1) for n in range(10)]
        wait_until(lambda: sizes and own.memory.used == own.memory.most)
        time.sleep(0.1)
        assert sum(sizes) + own.gallery.encoder._waiting.qsize() == 3
        gate.set()
        assert [one.result().hits[0].file_name for one in found] == images[:10]
    assert own.memory.used == 0
    with pytest.raises(UserError, match="not an image"):
        own.search([Photo(b"no image")])
    assert own.memory.used == 0


def test_a_search_is_that_of_the_gallery_and_leaves_an_audit_line(served):
    own, images = served
    for number in range(3):
        found = own.search([photo(images[number])], where=Where(cameras=[number]), k=3, who="ida")
        assert found == own.gallery.search(images[number], 3, where=Where(cameras=[number]))
        assert found.hits[0].file_name == images[number]
    line = list(own.audit.lines())[-1]
    digest = query_digest([Path(images[2]).read_bytes()])
    assert line | {"time": ""} == {
        "time": "",
        "who": "ida",
        "action": "search",
        "query": digest,
        "where": "camera_id in 2",
        "results": 3,
    }
    assert own.search(id=found.hits[0].id, k=1).hits[0].id != found.hits[0].id


def test_two_crops_are_compared(served, monkeypatch):
    own, images = served
    same = own.compare(photo(images[0]), photo(images[0]))
    assert (same.distance, same.threshold, same.probability) == (0, 0.05, None)
    calibration = Calibration((0.0, 1.0), (5.0, -5.0), (0.0,) * 5, 0.0, 1.0, 1.0, 10, 20)
    monkeypatch.setattr(own.gallery.encoder.encoder, "calibration", lambda: calibration, raising=False)
    other = own.compare(photo(images[0]), photo(images[1]))
    features = own.gallery.encoder.encode(images[:2]).astype(np.float64)
    cosine = features[0] @ features[1] / np.linalg.norm(features, axis=1).prod()
    assert other.distance == pytest.approx(1 - cosine, abs=1e-6)
    assert other.probability == pytest.approx(float(calibration.pair_probability(other.distance)))
    assert [line["action"] for line in own.audit.lines()] == ["compare", "compare"]


def test_rows_are_shown_and_erased(served):
    own, images = served
    shown = own.find(Where(cameras=[1]))
    assert {hit.file_name for hit in shown} == set(images[1::3])
    assert own.picture(shown[0].id).size == (32, 64)
    erased = own.delete([hit.id for hit in shown], who="eva")
    assert (erased.rows, erased.traces.count, erased.files) == (4, 0, [])
    assert own.find(Where(cameras=[1])) == [] and own.info()["rows"] == 8
    assert list(own.audit.lines())[-1]["where"] == "one of 4 ids"
    with pytest.raises(UserError, match="is not in the gallery"):
        own.picture(shown[0].id)


def test_a_person_found_by_a_photo_is_shown_and_erased(served):
    own, images = served
    found = own.gallery.search(images[1], 12, threshold=1.0)
    within = [hit.id for hit in found.hits if hit.distance <= 1.0]
    assert 1 < len(within) < 12
    hits, beyond = own.find_person([photo(images[1])], threshold=1.0, who="eva")
    assert [hit.id for hit in hits] == within and hits[0].file_name == images[1]
    next_ones = [hit.id for hit in found.hits[len(within) :]]
    assert [hit.id for hit in beyond] == next_ones[:BEYOND] and all(hit.beyond for hit in beyond)
    assert [hit.id for hit in own.find_person([photo(images[1])])[0]] == within[:1]  # the model's threshold
    cameras = Where(cameras=[1])
    assert {hit.crop.camera_id for hit in own.find_person([photo(images[1])], where=cameras, threshold=2.0)[0]} == {1}
    digest = query_digest([Path(images[1]).read_bytes()])
    own.delete(within[:1], query=digest, who="eva")
    assert [hit.id for hit in own.find_person([photo(images[1])], threshold=1.0)[0]] == within[1:]
    lines = list(own.audit.lines())
    assert [line["action"] for line in lines] == ["search"] * 3 + ["delete", "search"]
    assert {line["query"] for line in lines} == {digest}
    assert (lines[0]["results"], lines[0]["who"]) == (len(within), "eva")


def test_expired_rows_of_a_person_are_found(served):
    own, images = served
    expired = own.gallery.rows().ids.tolist()
    own.gallery.add(images, CropInfo(expires="2026-01-01T00:00:00Z"))
    assert own.search([photo(images[1])]).searched == 0
    assert sorted(hit.id for hit in own.find_person([photo(images[1])], threshold=2.0)[0]) == expired


def test_a_person_is_not_found_without_a_threshold(served, monkeypatch):
    own, images = served
    with pytest.raises(UserError, match="query: give a photo, words or an id"):
        own.find_person([])
    monkeypatch.setattr(own.gallery.encoder.encoder, "threshold", lambda: None)
    with pytest.raises(UserError, match="delete: the model has no threshold: give the largest distance as threshold"):
        own.find_person([photo(images[1])])


def test_an_explanation_is_about_the_query(served, monkeypatch):
    own, images = served
    asked = []

    def relevance(image, feature):
        asked.append((image.tobytes(), feature))
        return np.ones((2, 2), np.float32) * len(asked)

    encoder = own.gallery.encoder.encoder
    monkeypatch.setattr(encoder, "relevance", relevance, raising=False)
    features = encoder.encode(images[:3])
    row = own.search([photo(images[2])], k=1).hits[0].id
    drawn = own.explain(row, [photo(images[0]), photo(images[1])])
    pixels = [Image.open(image).convert("RGB").tobytes() for image in images[:3]]
    assert len(drawn) == 3 and [image for image, _ in asked] == pixels
    # The photos are compared with the row, and the row with the mean that was searched for.
    for (_, feature), own_feature in zip(asked, [features[2], features[2], features[:2].mean(0)], strict=True):
        np.testing.assert_array_equal(feature, own_feature)
    # One scale: the smaller relevance has a weaker colour.
    colours = [np.ptp(np.asarray(picture, int), axis=-1).mean() for picture in drawn]
    assert colours == sorted(colours) and colours[0] < colours[2]
    asked.clear()
    monkeypatch.setattr(encoder, "encode_text", lambda texts: np.full((1, 96), len(texts[0]), np.float32))
    assert len(own.explain(row, words="red")) == 1
    assert asked[0][0] == pixels[2] and set(asked[0][1]) == {3.0}
    with pytest.raises(UserError, match="query: give a photo, words or an id"):
        own.explain(row)


def test_nothing_is_erased_or_decided_without_an_audit_trail(served):
    own, _ = served
    own.audit.folder.write_text("no folder")
    ids = [hit.id for hit in own.find(Where(cameras=[1]))]
    for act in (lambda: own.delete(ids), lambda: own.decide("confirm", ids)):
        with pytest.raises(UserError, match="audit"):
            act()
    assert own.info()["rows"] == 12 and own.decisions() == []


def test_pictures_that_are_gone_are_grey(served):
    own, images = served
    hits = own.find(Where(cameras=[1]))
    Path(hits[1].file_name).unlink()
    pictures = own.pictures([hits[0].id, hits[1].id, "0" * 64])
    assert pictures[0].tobytes() == Image.open(hits[0].file_name).convert("RGB").tobytes()
    assert all(low == high for picture in pictures[1:] for low, high in picture.getextrema())


def test_a_changed_image_file_is_not_shown_as_the_row(served):
    own, images = served
    hit = next(hit for hit in own.find(Where(cameras=[1])) if hit.file_name == images[1])
    Path(images[1]).write_bytes(Path(images[2]).read_bytes())
    with pytest.raises(UserError, match="0001.png: is not the image that was added: restore it, or delete the row"):
        own.picture(hit.id)
    assert own.pictures([hit.id])[0].getextrema() == ((211, 211),) * 3


def test_decisions(served):
    own, _ = served
    ids = [hit.id for hit in own.find(Where(cameras=[0]))]
    made = own.decide("confirm", ids, "Ida", who="eva")
    assert (made.person, made.who) == ("Ida", "eva")
    own.decide("rename", person="Ida", new="Bo")
    assert own.decide("split", ids[:1]).person not in ("Ida", "Bo")
    assert [one.action for one in own.decisions()] == ["confirm", "rename", "split"]
    own.decide("undo", [own.decisions()[-1].id])
    own.decide("undo")
    assert own.decisions() == [made]
    assert [line["action"] for line in own.audit.lines()] == ["confirm", "rename", "split", "undo", "undo"]


def noise(width, height):
    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda s: s.search([Photo(noise(40, 20), "a.png")]),
            "a.png: is 40 x 20 pixels, wider than a person: it looks",
        ),
        (lambda s: s.search([Photo(b"x" * 10, "<b>.png")]), "<b>.png: not an image"),
        (lambda s: s.search([Photo(noise(9, 9)[:45], "a.png")]), "a.png: "),
        (lambda s: s.search([Photo(b"x" * 101, "a.png")]), "a.png: has more than 0 MiB: send a crop of one person"),
        (lambda s: s.search([Photo(noise(9, 9))] * 11), "photos: 11 were sent: send at most 10 of one person"),
        (lambda s: s.search([Photo(noise(9, 9))], k=1001), "top_k 1001: give 1 to 1000"),
        (lambda s: s.search([Photo(noise(9, 9))], k=0), "top_k 0: give 1 to 1000"),
        (lambda s: s.search([Photo(noise(9, 9))], words="red"), "query: give a photo, words or an id, and only one"),
        (lambda s: s.search(words="red"), "cannot embed words"),
        (lambda s: s.find_person([Photo(noise(9, 9))] * 11), "photos: 11 were sent: send at most 10 of one person"),
        (lambda s: s.find(Where()), "delete: give a condition, or the ids of rows"),
        (lambda s: s.decide("dance"), "action 'dance': give confirm, rename, split or undo"),
    ],
)
def test_mistakes(served, ask, message, monkeypatch):
    monkeypatch.setattr(service, "PHOTO_BYTES", 100)
    with pytest.raises(UserError, match=message):
        ask(served[0])
    assert list(served[0].audit.lines()) == []
