"""Adding, searching and erasing, against `rank_gallery` and the bytes on disk."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.reembedding import reembed
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.retrieval.reranking import rerank_blocks
from modeling_mllmreid.utils.errors import Unavailable, UserError


def same_as_rank_gallery(gallery, query, k, kept=None):
    """Checks a search against `rank_gallery` on the same features, sorted by id."""
    rows = gallery.rows()
    kept = np.arange(len(rows)) if kept is None else kept
    ranking = rank_gallery(query[None], rows.features[kept], k)
    count = (ranking.indices[0] >= 0).sum()
    return (
        list(rows.ids[kept][ranking.indices[0][:count]]),
        [float(distance) for distance in ranking.distances[0][:count]],
    )


def ids_and_distances(found):
    return [hit.id for hit in found.hits], [hit.distance for hit in found.hits]


def contents(folder):
    """All bytes of all files in a folder."""
    return b"\n".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def test_what_was_added_is_found(gallery, crops):
    images = crops(30)
    assert gallery.add(images, [CropInfo(camera_id=n % 3, source="hall") for n in range(30)]) == 30
    found = gallery.search(images[7], k=5)
    assert (found.hits[0].file_name, found.hits[0].distance, found.searched) == (images[7], 0, 30)
    assert found.hits[0].crop == CropInfo(camera_id=1, source="hall")
    assert not found.nobody and found.hits[1].beyond
    query = gallery.encoder.encode([images[7]])[0]
    assert ids_and_distances(found) == same_as_rank_gallery(gallery, query, 5)
    assert ids_and_distances(gallery.search(query, k=100)) == same_as_rank_gallery(gallery, query, 100)


def test_features_that_no_image_has_are_refused(gallery, crops):
    gallery.add(crops(2))
    good = gallery.rows().features
    rows = [{"id": f"{number:064x}"} for number in range(2)]
    for broken, message in (
        (np.array([[1], [0]], np.float32) * good, "row 1 is all zeros: no image has such a feature"),
        (np.array([[np.nan], [1]], np.float32) * good, "or NaN or infinity: give 2 rows of"),
        (good[:, 1:], "have the shape"),
    ):
        with pytest.raises(UserError, match=message):
            gallery.add_features(broken, rows)
    assert len(gallery.rows()) == 2


def test_a_stranger_is_nobody(gallery, crops):
    *images, stranger = crops(11)
    gallery.add(images)
    found = gallery.search(stranger, k=3)
    assert found.nobody and len(found.hits) == 3
    assert not gallery.search(stranger, threshold=2).nobody
    assert not gallery.search(stranger, threshold=None).nobody


def test_adding_twice_is_one_row_and_keeps_what_is_known(gallery, crops):
    images = crops(6)
    gallery.add(images, CropInfo(camera_id=2, person="Anna"))
    assert gallery.encoder.encoded == 6
    assert gallery.add([*images, *images], CropInfo(source="yard"), batch_size=5) == 0
    assert gallery.encoder.encoded == 6
    assert {hit.crop for hit in gallery.find()} == {CropInfo(camera_id=2, person="Anna", source="yard")}
    gallery.add(images[:1], CropInfo(camera_id=3))
    assert sorted(hit.crop.camera_id for hit in gallery.find()) == [2, 2, 2, 2, 2, 3]


def test_several_photos_and_a_row_as_query(gallery, crops):
    images = crops(12)
    gallery.add(images)
    rows = gallery.rows()
    features = gallery.encoder.encode(images[:2])
    assert ids_and_distances(gallery.search(images[:2])) == same_as_rank_gallery(gallery, features.mean(0), 10)
    others = np.arange(1, 12)
    found = gallery.search(id=rows.ids[0])
    assert ids_and_distances(found) == same_as_rank_gallery(gallery, rows.features[0], 10, others)
    for arguments in ({}, {"query": images[0], "id": rows.ids[0]}):
        with pytest.raises(UserError, match="query: give a photo, words or an id, and only one of them"):
            gallery.search(**arguments)
    with pytest.raises(UserError, match="id abc: is not in the gallery"):
        gallery.search(id="abc")
    with pytest.raises(UserError, match="cannot embed words"):
        gallery.search(words="a man in a red coat")
    with pytest.raises(UserError, match=r"words 'rot\\udcfcck': are no UTF-8 text: correct them"):
        gallery.search(words="rot\udcfcck")


def test_re_ranking_orders_the_nearest_rows(gallery, crops):
    gallery.add(crops(40))
    query = gallery.encoder.encode(crops(1, start=40))[0]
    plain, again = gallery.search(query, k=40), gallery.search(query, k=40, rerank=True)
    distances = {hit.id: hit.distance for hit in plain.hits}
    assert {hit.id: hit.distance for hit in again.hits} == distances
    features = gallery.rows().features[gallery.rows().places([hit.id for hit in plain.hits])]
    ((_, block),) = rerank_blocks(query[None], features)
    order = np.argsort(block.numpy()[0], kind="stable")
    assert [hit.id for hit in again.hits] == [plain.hits[place].id for place in order]
    assert [hit.id for hit in again.hits] != [hit.id for hit in plain.hits]


def test_rows_that_another_process_added_in_the_meantime_stay(gallery, crops, encoder, monkeypatch):
    images = crops(3)
    other = Gallery(gallery.store.place, encoder)
    encode = encoder.encode

    def slow(paths):
        monkeypatch.setattr(encoder, "encode", encode)
        assert other.add(images[:2], CropInfo(person="Ida")) == 2
        return encode(paths)

    monkeypatch.setattr(encoder, "encode", slow)
    assert gallery.add(images, CropInfo(camera_id=3)) == 1
    assert {hit.crop for hit in gallery.find()} == {CropInfo(3), CropInfo(3, person="Ida")}


def test_conditions(gallery, crops):
    images = crops(20)
    hour = [datetime(2026, 11, 28, n, tzinfo=UTC) for n in range(20)]
    known = [
        CropInfo(
            camera_id=n % 4, time=None if n == 3 else hour[n], source=f"hall {n % 2}", person="Ida" if n < 2 else None
        )
        for n in range(20)
    ]
    gallery.add(images, known)
    names = [hit.file_name for hit in gallery.find()]
    numbers = {name: images.index(name) for name in names}
    for where, expected in (
        (Where(cameras=[1, 3]), {n for n in range(20) if n % 4 in (1, 3)}),
        (Where(since="2026-11-28T05:00Z"), set(range(5, 20))),
        (Where(until="2026-11-28T06:00+01:00"), {0, 1, 2, 4}),
        (Where(equal=["source=hall 1"], cameras=[1]), {1, 5, 9, 13, 17}),
        (Where(equal=["person="]), set(range(2, 20))),
        (Where(equal=["person=Ida", "person=Bo", "camera_id=1"]), {1}),
        (Where(equal=["time="]), {3}),
        (Where(equal=["time=2026-11-28T05:00+01:00"]), {4}),
        (Where(ids=["unknown"]), set()),
    ):
        assert {numbers[hit.file_name] for hit in gallery.find(where)} == expected, str(where)
        found = gallery.search(images[0], k=20, where=where)
        assert found.searched == len(expected)
        assert {numbers[hit.file_name] for hit in found.hits} == expected
        kept = np.flatnonzero(where.mask(gallery.rows()))
        query = gallery.encoder.encode(images[:1])[0]
        if expected:
            assert ids_and_distances(found) == same_as_rank_gallery(gallery, query, 20, kept)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"equal": ["colour=red"]}, "where 'colour=red': no such column: the columns are id, file_name, camera_id"),
        ({"equal": ["camera_id"]}, "is no condition: write COLUMN=VALUE"),
        ({"equal": ["camera_id=door"]}, "where camera_id=door: give a whole number"),
        ({"equal": [f"camera_id={10**23}"]}, "where camera_id=100000000000000000000000: give a whole number"),
        ({"equal": ["person=\udcff"]}, r"where 'person=\\udcff': is no UTF-8 text"),
        ({"since": "2026-11-28T08:00"}, "time '2026-11-28T08:00': has no zone"),
        ({"since": "yesterday"}, "time 'yesterday': is no time"),
        ({"since": "2026-11-28T08:00Z", "until": "2026-11-28T08:00Z"}, "is not before until"),
    ],
)
def test_wrong_conditions(arguments, message):
    with pytest.raises(UserError, match=message):
        Where(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"camera_id": -2}, "camera_id -2: give a whole number from 0"),
        ({"camera_id": "3"}, "camera_id '3'"),
        ({"track_id": 2**63}, "track_id 9223372036854775808"),
        ({"time": "2026-11-28"}, "has no zone"),
        ({"person": "Ida\nBo"}, "give a text of one line"),
        ({"source": "x" * 1001}, "has 1001 characters"),
        ({"time": "0001-01-01T00:00+14:00"}, "is outside the calendar"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(UserError, match=message):
        CropInfo(**arguments)


@pytest.mark.parametrize("keep", ["file_name", "thumbnail"])
def test_what_is_erased_is_in_no_file(tmp_path, crops, encoder, keep):
    """Also of a single row in a large file, after an addition and under an index."""
    gallery = Gallery.create(tmp_path / "store", encoder, keep=keep)
    images = crops(300)
    gallery.add(images[:200], batch_size=90)
    gallery.add(images[200:], CropInfo(person="Ida"))
    for count in (1, 1, 7, 100):
        rows = gallery.rows()
        chosen = Where(ids=list(rows.ids[:count]))
        secret = [*[row.tobytes() for row in rows.features[:count]], *[name.encode() for name in rows.ids[:count]]]
        if keep == "file_name":
            secret += [name.encode() for name in rows.columns["file_name"][:count]]
        assert all(piece in contents(tmp_path / "store") for piece in secret)  # the test can fail
        gallery.store.open().create_index("feature", "IVF_FLAT", metric="cosine", num_partitions=2)
        erased = gallery.delete(chosen)
        assert (erased.rows, erased.traces.count) == (count, 0)
        assert erased.traces.patterns >= 2 * count and erased.traces.searched_bytes > 1000
        assert not any(piece in contents(tmp_path / "store") for piece in secret)
    assert len(gallery.rows()) == 191
    gallery.delete(Where(equal=["person=Ida"]))
    assert b"Ida" not in contents(tmp_path / "store")
    everything = [hit.id for hit in gallery.find()]
    gallery.delete(Where(ids=everything))
    assert not any(name.encode() in contents(tmp_path / "store") for name in everything)
    assert gallery.search(images[0], threshold=None).hits == []


def test_equal_rows_and_names_inside_names_are_no_traces(gallery, crops, tmp_path):
    images = crops(3)
    copy = tmp_path / "crops" / "again.png"
    copy.write_bytes(Path(images[0]).read_bytes() + b"\0")  # another file with the same pixels
    gallery.add([*images, str(copy)])
    (hit,) = gallery.find(Where(equal=[f"file_name={images[0]}"]))
    erased = gallery.delete(Where(ids=[hit.id]))
    assert (erased.traces.count, erased.traces.shared) == (0, 1)
    assert gallery.search(images[0]).hits[0].file_name == str(copy)


def test_files_are_deleted_only_on_request(gallery, crops):
    images = crops(4)
    gallery.add(images)
    gallery.delete(Where(equal=[f"file_name={images[0]}"]))
    assert os.path.exists(images[0])
    erased = gallery.delete(Where(equal=[f"file_name={images[1]}"]), files=True)
    assert erased.files == [images[1]] and not os.path.exists(images[1])
    with pytest.raises(UserError, match="delete: give a condition"):
        gallery.delete(Where())


def test_expired_rows_are_not_found_and_then_erased(gallery, crops):
    images = crops(3)
    soon = datetime.now(UTC) + timedelta(days=1)
    gallery.add(images, [CropInfo(expires=soon - timedelta(days=2)), CropInfo(expires=soon), CropInfo()])
    assert {hit.file_name for hit in gallery.search(images[0]).hits} == set(images[1:])
    assert (gallery.info()["rows"], gallery.info()["expired"]) == (3, 1)
    assert gallery.expire().rows == 1 and gallery.expire().rows == 0
    assert gallery.expire(soon).rows == 1
    assert [hit.file_name for hit in gallery.find()] == images[2:]


def test_another_process_is_seen(gallery, crops, encoder):
    images = crops(5)
    other = Gallery(gallery.store.place, encoder)
    assert other.search(images[0], threshold=None).hits == []
    gallery.add(images)
    assert len(other.search(images[0]).hits) == 5
    other.delete(Where(equal=[f"file_name={images[0]}"]))
    assert len(gallery.search(images[0]).hits) == 4
    gallery.add(images)
    assert len(other.rows()) == 5


def test_an_interrupted_erasure_is_finished_by_the_next_writer(gallery, crops, monkeypatch):
    images = crops(6)
    gallery.add(images[:5])
    (hit,) = gallery.find(Where(equal=[f"file_name={images[0]}"]))
    feature = gallery.rows().features[gallery.rows().places([hit.id])[0]].tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(gallery.store, "finish_erasure", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gallery.delete(Where(ids=[hit.id]))
    assert gallery.info()["unfinished_erasure"] and len(gallery.rows()) == 4
    assert feature in contents(gallery.store.place)
    gallery.add(images[5:])
    assert feature not in contents(gallery.store.place) and not gallery.info()["unfinished_erasure"]


def test_many_additions_do_not_leave_many_files(gallery, crops, monkeypatch):
    monkeypatch.setattr("modeling_mllmreid.gallery.store.MOST_FILES", 3)
    images = crops(12)
    for image in images:
        gallery.add([image])
    data = [name for name, _ in gallery.store.files() if name.endswith(".lance")]
    assert len(data) <= 4 and len(gallery.rows()) == 12


def test_the_info(gallery, crops):
    gallery.add(crops(4), [CropInfo(camera_id=1, time="2026-11-28T08:00Z", person="Ida")] * 3 + [CropInfo()])
    info = gallery.info()
    assert (info["rows"], info["persons"], info["cameras"]) == (4, 1, {-1: 1, 1: 3})
    assert (info["first"], info["last"]) == ("2026-11-28T08:00:00Z",) * 2
    assert info["bytes"] == len(contents(gallery.store.place)) - sum(1 for _ in gallery.store.files()) + 1
    assert info["model"]["model"] == "colours"
    json.dumps(info)


def test_another_model_is_refused(gallery, crops):
    gallery.add(crops(2))
    for changed in ({"weights": "1" * 64}, {"height": 16}, {"feature": "llm"}, {"numbers": 12}):
        other = type(gallery.encoder)("another", **changed)
        with pytest.raises(UserError, match=r"was made by another model \(colours\): .* gallery reembed"):
            Gallery(gallery.store.place, other)


def test_another_process_gives_a_gallery_another_model(gallery, crops, tmp_path):
    """Nothing is compared with, or added to, features of another model."""
    images = crops(3)
    gallery.add(images)
    gallery.search(images[0])
    reembed(Gallery(gallery.store.place, gallery.encoder), type(gallery.encoder)("new", weights="1" * 64))
    for act in (
        lambda: gallery.search(images[0]),
        lambda: gallery.search(images[0], approximate=True),
        gallery.find,
        gallery.info,
        lambda: gallery.add(crops(2, start=50)),
    ):
        with pytest.raises(Unavailable, match="gallery: got another model in the meantime: open it again$"):
            act()
    assert len(Gallery(gallery.store.place).find()) == 3


def test_places_that_are_no_gallery(tmp_path, encoder):
    with pytest.raises(UserError, match="is no gallery: create one with gallery add"):
        Gallery(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        Gallery.create(tmp_path / "full", encoder)
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other/rows.lance"))
    with pytest.raises(UserError, match="is a Lance data set, but no gallery"):
        Gallery(tmp_path / "other")
    Gallery.create(tmp_path / "newer", encoder)
    metadata = lance.dataset(str(tmp_path / "newer/rows.lance")).schema.metadata
    stored = json.loads(metadata[b"mllmreid_gallery"]) | {"format": 3}
    lance.dataset(str(tmp_path / "newer/rows.lance")).update_schema_metadata({"mllmreid_gallery": json.dumps(stored)})
    with pytest.raises(UserError, match="a newer version of this package wrote it"):
        Gallery(tmp_path / "newer")
    with (
        pytest.raises(UserError, match="is on the Hub and can only be read"),
        Gallery.create.__func__.__globals__["Store"]("hf://datasets/a/b").writer(),
    ):
        pass


@pytest.mark.parametrize("seed", range(12))
def test_random_histories(gallery, crops, encoder, seed):
    """The same ids and distances as `rank_gallery` after any order of additions, changes and deletions."""
    random = np.random.default_rng(seed)
    images = crops(24)
    state: dict[str, int] = {}
    handles = [gallery, Gallery(gallery.store.place, encoder)]
    for _ in range(8):
        acting = handles[random.integers(2)]
        chosen = [images[n] for n in random.choice(24, random.integers(1, 9), replace=False)]
        camera = int(random.integers(5))
        if random.random() < 0.6:
            acting.add(chosen, CropInfo(camera_id=camera), batch_size=int(random.integers(1, 9)))
            state |= dict.fromkeys(chosen, camera)
        else:
            acting.delete(Where(equal=[f"file_name={name}" for name in chosen]))
            for name in chosen:
                state.pop(name, None)
    for handle in handles:
        assert {hit.file_name: hit.crop.camera_id for hit in handle.find()} == state
        query = encoder.encode([images[random.integers(24)]])[0]
        if state:
            assert ids_and_distances(handle.search(query, k=9)) == same_as_rank_gallery(handle, query, 9)
