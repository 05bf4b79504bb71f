"""The index: what it finds, its conditions, and that an erasure removes it."""

import hashlib
from datetime import UTC, datetime

import numpy as np
import pytest

from modeling_mllmreid.gallery.filters import Where, live
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.indexing import build_index
from modeling_mllmreid.utils.errors import UserError

ROWS = 3000
NAMES = [None, "", "Ida", "O'Neil", "100%", "a_b", "' OR 1=1 --", 'He said "x"', "Zoë"]


def digest_of(number):
    return hashlib.sha256(bytes([number % 256, number // 256])).hexdigest()


def features_and_rows(rng, count=ROWS):
    """Rows around 60 people, with all kinds of values."""
    people = rng.integers(60, size=count)
    features = rng.normal(size=(60, 96))[people] + 0.6 * rng.normal(size=(count, 96))
    seconds = rng.integers(100, size=count)
    rows = [
        {
            "id": digest_of(number),
            "camera_id": int(number % 5) - 1,
            "track_id": int(number % 7),
            "person": NAMES[number % len(NAMES)],
            "source": ["", "hall", "yard 'b'"][number % 3],
            "file_name": f"/crops/{number}.png",
            "time": None if number % 4 == 0 else int(1_700_000_000_000_000 + 1_000_000 * seconds[number]),
            "expires": [None, 1_600_000_000_000_000, 4_000_000_000_000_000][number % 3],
        }
        for number in range(count)
    ]
    return features.astype(np.float32), rows


@pytest.fixture(scope="module")
def filled(tmp_path_factory, module_encoder):
    gallery = Gallery.create(tmp_path_factory.mktemp("indexed") / "gallery", module_encoder)
    gallery.add_features(*features_and_rows(np.random.default_rng(0)))
    return gallery, build_index(gallery, recall=0.9)


def ids(found):
    return [hit.id for hit in found.hits]


def test_its_recall_is_measured_against_the_exact_search(filled):
    gallery, index = filled
    assert (index.rows, index.partitions, index.k) == (ROWS, 3, 10) and 0.9 <= index.recall <= 1
    assert gallery.store.probes() == index.probes
    rows, shares = gallery.rows(), []
    drawn = np.random.default_rng(0).permutation(ROWS)[:200]
    for place in drawn:
        exact = ids(gallery.search(rows.features[place], k=11, threshold=None))[1:]
        own = gallery.store.nearest(rows.features[place], 11, index.probes)["id"].to_pylist()[1:]
        shares.append(len(set(exact) & set(own)) / 10)
    # Expired rows are in the index, and in no search result.
    assert index.recall >= np.mean(shares)


def test_a_search_with_all_parts_is_the_exact_search(filled, module_encoder, capfd):
    gallery, index = filled
    fresh = Gallery(gallery.store.place, module_encoder)
    fresh.store.set_probes(index.partitions)
    for seed, where in enumerate([Where(), Where(cameras=[2]), Where(equal=["person=O'Neil", "source="])]):
        query = np.random.default_rng(seed).normal(size=96).astype(np.float32)
        found = fresh.search(query, 20, where=where, approximate=True)
        assert fresh._loaded is None  # no feature was read into memory
        exact = gallery.search(query, 20, where=where)
        assert (found.hits, found.searched) == (exact.hits, exact.searched)
    row = ids(exact)[0]
    own, exact = (gallery.search(id=row, k=5, approximate=approximate) for approximate in (True, False))
    assert (own.hits, own.searched) == (exact.hits, exact.searched) and row not in ids(own)
    fresh.store.set_probes(index.probes)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(40))
def test_the_store_and_the_memory_agree_on_conditions(filled, seed):
    gallery, _ = filled
    rng = np.random.default_rng(seed)
    rows = gallery.rows()
    pairs = [f"person={name or ''}" for name in NAMES]
    pairs += ["source=", "source=yard 'b'", "camera_id=", "camera_id=3", "track_id=6", "time=", "expires="]
    pairs += ["time=2023-11-14T22:13:50Z", "file_name=/crops/7.png", f"id={digest_of(7)}"]
    pairs.append("expires=2020-09-13T12:26:40Z")
    times = [None, *(datetime.fromtimestamp(1_700_000_000 + 20 * n, UTC).isoformat() for n in range(5))]
    since, until = times[rng.integers(6)], times[rng.integers(6)]
    if since and until and since >= until:
        since = None
    chosen = None if rng.random() < 0.7 else [digest_of(number) for number in rng.integers(ROWS + 100, size=300)]
    cameras = rng.choice([-1, 0, 1, 2, 99], rng.integers(3)).tolist()
    where = Where(cameras, since, until, list(rng.choice(pairs, rng.integers(1, 4))), chosen)
    assert gallery.store.count(where.sql()) == (where.mask(rows) & live(rows)).sum(), where


def test_later_rows_are_found_and_an_erasure_removes_the_index(tmp_path, encoder):
    gallery = Gallery.create(tmp_path / "gallery", encoder)
    features, rows = features_and_rows(np.random.default_rng(1), 600)
    gallery.add_features(features[:500], rows[:500])
    build_index(gallery)
    gallery.add_features(features[500:], rows[500:])
    later = [number for number in range(500, 600) if rows[number]["expires"] != 1_600_000_000_000_000]
    for number in later[:10]:
        assert ids(gallery.search(features[number], 1, approximate=True)) == [digest_of(number)]
    erased = gallery.delete(Where(ids=[digest_of(0), digest_of(later[0])]))
    assert (erased.rows, erased.traces.count) == (2, 0)
    stored = b"".join(file().read() for _, file in gallery.store.files())
    assert features[0].tobytes() not in stored and features[1].tobytes() in stored
    with pytest.raises(UserError, match=r"has no index \(an erasure removes it\): build it with gallery index, or"):
        gallery.search(features[1], approximate=True)
    build_index(gallery)
    assert digest_of(0) not in ids(gallery.search(features[0], 600, approximate=True))


def test_mistakes(gallery, filled):
    gallery.add_features(*(part[:255] for part in features_and_rows(np.random.default_rng(2), 300)))
    with pytest.raises(UserError, match="has 255 rows, and an index needs 256: search without one"):
        build_index(gallery)
    with pytest.raises(UserError, match="recall 1.5: give a share above 0, at most 1"):
        build_index(filled[0], recall=1.5)
