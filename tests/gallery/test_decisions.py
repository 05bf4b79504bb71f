"""Decisions of a human: what they change, that they can be undone, and that an erasure takes them along."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import dying_gallery
import lance
import numpy as np
import pytest
from unknown_people import CALIBRATION

from modeling_mllmreid.gallery.decisions import confirm, decisions, rename, split, undo
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.reembedding import reembed
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.gallery.store import Store
from modeling_mllmreid.gallery.unknown_people import gallery_groups
from modeling_mllmreid.utils.errors import Unavailable, UserError


def names(gallery):
    """The name of each row, by its id."""
    return {hit.id: hit.crop.person for hit in gallery.find()}


@pytest.fixture
def filled(gallery, crops):
    gallery.add(crops(9))
    return gallery, sorted(names(gallery))


def test_decisions_and_their_undoing(filled):
    gallery, ids = filled
    features = gallery.rows().features
    first = confirm(gallery, ids[:3], who="eva")
    assert first.person == f"person {first.id[:8]}" and (first.who, first.action, first.ids) == (
        "eva",
        "confirm",
        ids[:3],
    )
    assert confirm(gallery, ids[2:4]).person == first.person  # the name that is there
    assert [one.person for one in decisions(gallery)] == [first.person] * 2
    rename(gallery, first.person, "Ida")
    other = split(gallery, ids[1:2])
    assert other.person not in ("Ida", first.person)
    assert names(gallery) == dict(zip(ids, ["Ida", other.person, "Ida", "Ida", *[None] * 5], strict=True))
    assert {hit.id for hit in gallery.find(Where(equal=["person=Ida"]))} == {ids[0], ids[2], ids[3]}
    rename(gallery, other.person, "Ida")
    made = decisions(gallery)
    assert [one.action for one in made] == ["confirm", "confirm", "rename", "split", "rename"]
    assert made == sorted(made, key=lambda one: one.time)
    for left in range(4, -1, -1):
        assert undo(gallery) == made[left]
        assert decisions(gallery) == made[:left]
    assert set(names(gallery).values()) == {None}
    np.testing.assert_array_equal(gallery.rows().features, features)


def test_only_what_no_later_change_depends_on_is_undone(filled, crops):
    gallery, ids = filled
    one, two = confirm(gallery, ids[:3], "Ida"), confirm(gallery, ids[4:6], "Bo")
    later = rename(gallery, "Ida", "Eva")
    with pytest.raises(UserError, match=f"undo {one.id}: decision {later.id} changed 3 of its rows later: undo that"):
        undo(gallery, one.id)
    assert undo(gallery, two.id) == two and names(gallery)[ids[4]] is None
    images = {hit.id: hit.file_name for hit in gallery.find()}
    gallery.add([images[ids[0]]], CropInfo(person="Zoë"))
    with pytest.raises(UserError, match=f"undo {later.id}: 1 of its rows got another name from add later: rename them"):
        undo(gallery)
    assert names(gallery)[ids[0]] == "Zoë" and names(gallery)[ids[1]] == "Eva"
    gallery.delete(Where(ids=ids[:1]))
    assert undo(gallery).ids == ids[1:3]  # the rows that are still there
    assert undo(gallery, one.id).person == "Ida" and set(names(gallery).values()) == {None}
    with pytest.raises(UserError, match="undo: there is no decision$"):
        undo(gallery)


@pytest.mark.parametrize("seed", range(6))
def test_random_decisions(filled, seed):
    """A model in plain Python says what the names are; undoing everything leads back."""
    gallery, ids = filled
    random = np.random.default_rng(seed)
    expected, history = names(gallery), []
    for _ in range(20):
        chosen = sorted(random.choice(ids, random.integers(1, 5), replace=False).tolist())
        kind, name = random.choice(["confirm", "rename", "split"]), str(random.choice(["A", "B", "C"]))
        before = dict(expected)
        try:
            if kind == "confirm":
                made = confirm(gallery, chosen, name)
            elif kind == "split":
                made = split(gallery, chosen, name)
            else:
                made = rename(gallery, str(random.choice(["A", "B", "C"])), name)
        except UserError:
            assert names(gallery) == expected
            continue
        expected |= dict.fromkeys(made.ids, made.person)
        history.append((made, before))
        assert names(gallery) == expected and decisions(gallery)[-1] == made
    assert history
    for made, before in reversed(history):
        assert undo(gallery) == made
        assert names(gallery) == before


@pytest.mark.parametrize("seed", range(4))
def test_after_any_decisions_an_erased_row_and_its_names_are_in_no_file(filled, seed):
    gallery, ids = filled
    random, given = np.random.default_rng(seed), set()
    for number in range(12):
        now, new, who = names(gallery), f"Wilhelmina {number:02d}", f"theodora {number:02d}"
        named = [name for name in ids if now[name]]
        if not named or random.random() < 0.5:
            chosen = random.choice([name for name in ids if not now[name]] or named[:1], 2).tolist()
            confirm(gallery, chosen, now[chosen[0]] or new, who=who)
        elif random.random() < 0.6:
            rename(gallery, now[str(random.choice(named))], new, who=who)
        else:
            undo(gallery)
        given |= {new, who}
    for _ in range(3):
        gone = random.choice(list(names(gallery)), 2, replace=False).tolist()
        secrets = {*gone, *(row.tobytes() for row in gallery.rows().features[gallery.rows().places(gone)])}
        assert gallery.delete(Where(ids=gone)).traces.count == 0
        left = str(gallery.store.read(["person", "decisions"])[1].to_pylist())
        stored = b"".join(file().read() for _, file in gallery.store.files())
        forgotten = {word for word in given if word not in left}
        found = [word for word in secrets | forgotten if (word if isinstance(word, bytes) else word.encode()) in stored]
        assert not found and forgotten


def test_an_erasure_takes_names_and_decisions_along(filled):
    gallery, ids = filled
    old, new = "Wilhelmina Old", "Wilhelmina New"
    confirm(gallery, ids[:2], old, who="theodora")
    rename(gallery, old, new, who="theodora")
    undo(gallery)
    rename(gallery, old, new, who="theodora")
    stored = b"".join(file().read() for _, file in gallery.store.files())
    assert old.encode() in stored and b"theodora" in stored
    erased = gallery.delete(Where(ids=ids[:1]))  # the other row has the same entries
    assert (erased.rows, erased.traces.count) == (1, 0)
    assert [one.ids for one in decisions(gallery)] == [ids[1:2]] * 2
    erased = gallery.delete(Where(equal=[f"person={new}"]))
    assert (erased.rows, erased.traces.count, erased.traces.shared) == (1, 0, 0)
    stored = b"".join(file().read() for _, file in gallery.store.files())
    assert not any(word in stored for word in (b"Wilhelmina", b"theodora"))
    assert decisions(gallery) == []


def test_traces_of_decisions_are_counted(filled):
    gallery, ids = filled
    confirm(gallery, ids[:1], "Ida")
    text = gallery.store.read(["decisions"], ids[:1])[1]["decisions"][0].as_py().encode()
    Path(gallery.store.place, "rows.lance/left").write_bytes(text)
    assert gallery.delete(Where(ids=ids[:1])).traces.files == ["rows.lance/left"]


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (
            lambda g, ids: confirm(g, []),
            "no row is chosen: give conditions that rows meet, or groups of a file of `gallery groups`",
        ),
        (
            lambda g, ids: confirm(g, [*ids[:2], "0" * 64]),
            "1 of 3 rows are not in the gallery, the first is 0000000000000",
        ),
        (lambda g, ids: confirm(g, ids), "confirm: the rows have the names 'Bo', 'Ida': rename these people first, or"),
        (
            lambda g, ids: confirm(g, ids[1:3], "Eva"),
            "confirm: the rows have the name 'Ida': rename these",
        ),
        (lambda g, ids: confirm(g, ids[6:], "a\nb"), "person 'a.nb': give a text of one line"),
        (lambda g, ids: rename(g, "Eva", "Zoë"), "rename: no row has the name 'Eva': the names are 'Bo', 'Ida'"),
        (lambda g, ids: confirm(g, ids[6:], "a\u202eb"), "give a text of one line"),
        (lambda g, ids: rename(g, "Ida", "Ida"), "rename: 'Ida' is the name already: give another one"),
        (lambda g, ids: rename(g, "Ida", " Ida "), "rename: 'Ida' is the name already"),
        (lambda g, ids: rename(g, "Ida", " "), "rename: ' ' is no name: give one"),
        (lambda g, ids: split(g, ids[2:5]), "split: the rows do not have one name: choose rows of one named person"),
        (lambda g, ids: split(g, ids[6:]), "split: the rows do not have one name"),
        (lambda g, ids: split(g, ids[:3]), "split: these are all rows of 'Ida': use rename to give another name"),
        (lambda g, ids: split(g, ids[:1], "Ida"), "split: 'Ida' is the name that the rows have: give another one"),
        (lambda g, ids: undo(g, "no"), "undo: there is no decision 'no': gallery decisions lists them"),
    ],
)
def test_mistakes(filled, decide, message):
    gallery, ids = filled
    confirm(gallery, ids[:3], "Ida")
    confirm(gallery, ids[3:6], "Bo") if "all rows" not in message else None
    before, made = names(gallery), decisions(gallery)
    with pytest.raises(UserError, match=message):
        decide(gallery, ids)
    assert (names(gallery), decisions(gallery)) == (before, made)


def test_a_gallery_of_an_earlier_format(gallery):
    stored = json.loads(lance.dataset(gallery.store.uri).schema.metadata[b"mllmreid_gallery"]) | {"format": 1}
    lance.dataset(gallery.store.uri).update_schema_metadata({"mllmreid_gallery": json.dumps(stored)})
    with pytest.raises(UserError, match="an earlier version of this package wrote it: add its images to a new gallery"):
        Gallery(gallery.store.place)


def test_a_killed_process_leaves_whole_decisions(tmp_path, encoder):
    place = tmp_path / "killed"
    gallery = Gallery.create(place, type(encoder)(numbers=dying_gallery.NUMBERS))
    people = range(40)
    features = np.stack([dying_gallery.feature(person) for person in people])
    gallery.add_features(features, [{"id": dying_gallery.digest(person)} for person in people])
    code = (
        "import sys, dying_gallery as d\nfrom modeling_mllmreid.gallery.gallery import Gallery\n"
        "from modeling_mllmreid.gallery.decisions import confirm, rename, undo\n"
        "g, n = Gallery(sys.argv[1]), 0\nprint('ready', flush=True)\n"
        "while True:\n    n += 1\n    confirm(g, [d.digest(p) for p in range(40)], 'A')\n    rename(g, 'A', 'B')\n"
        "    undo(g)\n    undo(g)\n    print(n, flush=True)\n"
    )
    paths = [str(Path(dying_gallery.__file__).parent), str(Path(__file__).parents[2])]
    environment, ended = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, 0
    for seconds in (0.15, 0.25, 0.35):
        command = [sys.executable, "-c", code, str(place)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(seconds)
            process.kill()
            ended += len(process.stdout.read().splitlines())
        named = names(Gallery(place)).values()
        made = decisions(Gallery(place))
        assert len(named) == 40 and [set(named)] == [{(made[-1].person if made else None)}]
        assert [len(one.ids) for one in made] == [40] * len(made) and len(made) <= 2
        while made:
            undo(gallery)
            made = decisions(gallery)
    assert ended and set(names(gallery).values()) == {None}


def check_stacks(gallery, made):
    """A row has the name of its last decision, each of them starts from the one before, and all can be undone."""
    rows = gallery.store.read(["id", "person", "decisions"])[1].to_pylist()
    for row in rows:
        stack = json.loads(row["decisions"] or "[]")
        assert [None, *(entry["after"] for entry in stack)] == [*(entry["before"] for entry in stack), row["person"]]
        assert all(one["time"] < other["time"] for one, other in pairwise(stack))
    left = decisions(gallery)
    assert {one.id: one for one in left} == made
    while left:
        undo(gallery)
        left = decisions(gallery)
    assert set(names(gallery).values()) == {None}


def decide_at_random(gallery, ids, seed, count):
    """Makes decisions; returns those that were made and the ids of those that were undone."""
    random, made, undone = np.random.default_rng(seed), {}, set()
    for _ in range(count):
        kind = str(random.choice(["undo", "confirm", "confirm", "split", "rename"]))
        now = names(gallery)
        named = [name for name in ids if now[name]] or ids
        try:
            if kind == "undo":
                undone.add(undo(gallery).id)
                continue
            if kind == "confirm":
                one = confirm(gallery, random.choice(ids, 2, replace=False).tolist())
            elif kind == "split":
                one = split(gallery, [str(random.choice(named))])
            else:
                one = rename(gallery, str(now[str(random.choice(named))]), str(random.choice(["A", "B", "C"])))
            made[one.id] = one
        except UserError as error:
            assert "all the time" not in str(error)
    return made, undone


def test_a_writer_that_others_overtake_waits_longer_each_time(filled, monkeypatch):
    store, waits, versions = filled[0].store, [], []
    monkeypatch.setattr("modeling_mllmreid.gallery.store.time.sleep", waits.append)
    monkeypatch.setattr("modeling_mllmreid.gallery.store.WAITING.uniform", lambda low, high: high)

    def overtaken(version):
        versions.append(version)
        return 0 if len(versions) == 4 else None

    assert store.commit(overtaken) == 0 and versions == [store.version] * 4
    assert waits == sorted(waits) and len(set(waits)) == 3
    with pytest.raises(Unavailable, match="^gallery .*: other processes change it all the time: try again later$"):
        store.commit(lambda version: None)
    assert len(waits) == 3 + 19 and max(waits) <= 0.5


@pytest.mark.parametrize("locked", [True, False], ids=["folder", "as in a bucket"])
def test_several_writers_decide_at_once(filled, encoder, monkeypatch, locked):
    gallery, ids = filled
    if not locked:
        monkeypatch.setattr(Store, "writer", lambda self: nullcontext())
    with ThreadPoolExecutor(3) as pool:
        work = [
            pool.submit(decide_at_random, Gallery(gallery.store.place, encoder), ids, seed, 10 if locked else 20)
            for seed in range(2 if locked else 3)
        ]
        done = [one.result() for one in work]
    assert sum(len(some) for some, _ in done) > 5
    undone = set().union(*(gone for _, gone in done))
    made = {key: one for some, _ in done for key, one in some.items() if key not in undone}
    check_stacks(gallery, made)


def test_what_another_process_decided_in_the_meantime_is_seen(filled, encoder, monkeypatch):
    gallery, ids = filled
    monkeypatch.setattr(Store, "writer", lambda self: nullcontext())
    other, update = Gallery(gallery.store.place, encoder), gallery.store.update

    def meanwhile(change):
        def late(table, version):
            monkeypatch.setattr(gallery.store, "update", update)
            change()
            return update(table, version)

        monkeypatch.setattr(gallery.store, "update", late)

    meanwhile(lambda: confirm(other, ids[:2], "Bo"))
    with pytest.raises(UserError, match="confirm: the rows have the name 'Bo'"):
        confirm(gallery, ids[1:4], "Ida")
    meanwhile(lambda: confirm(other, ids[2:3], "Bo"))
    assert rename(gallery, "Bo", "Ida").ids == ids[:3]
    meanwhile(lambda: rename(other, "Ida", "Zoë"))
    with pytest.raises(UserError, match="rename: no row has the name 'Ida': the names are 'Zoë'"):
        rename(gallery, "Ida", "Eva")
    meanwhile(lambda: undo(other))
    assert undo(gallery).action == "rename" and set(names(gallery).values()) == {"Bo", None}


def test_an_addition_in_a_bucket_keeps_a_decision_that_was_made_in_the_meantime(filled, encoder, crops, monkeypatch):
    gallery, ids = filled
    monkeypatch.setattr(Store, "writer", lambda self: nullcontext())
    other, merge = Gallery(gallery.store.place, encoder), gallery.store.merge

    def late(*arguments):
        monkeypatch.setattr(gallery.store, "merge", merge)
        confirm(other, ids[:3], "Ida")
        return merge(*arguments)

    monkeypatch.setattr(gallery.store, "merge", late)
    images = sorted({hit.file_name for hit in gallery.find()})
    assert gallery.add([*images, *crops(2, start=20)], CropInfo(camera_id=7)) == 2
    assert {hit.crop.camera_id for hit in gallery.find()} == {7} and len(gallery.find()) == 11
    assert {name for name, person in names(gallery).items() if person == "Ida"} == set(ids[:3])
    assert undo(gallery).ids == ids[:3]


def test_many_decisions_do_not_leave_many_files(filled, monkeypatch):
    monkeypatch.setattr("modeling_mllmreid.gallery.store.MOST_FILES", 3)
    gallery, ids = filled
    for row in ids:
        confirm(gallery, [row])
    assert len([name for name, _ in gallery.store.files() if name.endswith(".lance")]) <= 4
    check_stacks(gallery, {one.id: one for one in decisions(gallery)})


def test_a_new_model_keeps_decisions(filled, encoder):
    gallery, ids = filled
    confirm(gallery, ids[:2], "Ida")
    made = decisions(gallery)
    new = reembed(gallery, type(encoder)("other", weights="1" * 64))
    assert decisions(new) == made and undo(new) == made[0] and set(names(new).values()) == {None}


def test_a_decision_outranks_a_track(gallery, encoder, monkeypatch):
    monkeypatch.setattr(encoder, "calibration", lambda: CALIBRATION)
    directions = np.eye(3, encoder.numbers, dtype=np.float32)[[0, 0, 1, 1, 2]]
    ids = [dying_gallery.digest(n) for n in range(5)]
    rows = [{"id": name, "camera_id": 1, "track_id": track} for name, track in zip(ids, [7, 7, 7, 7, 8], strict=True)]
    gallery.add_features(directions, rows)
    assert gallery_groups(gallery, Where())[1].labels.tolist() == [0, 0, 0, 0, 1]
    confirm(gallery, ids[:4], "Ida")
    split(gallery, ids[2:4], "Bo")  # the tracker went on with another person
    assert gallery_groups(gallery, Where())[1].labels.tolist() == [0, 0, 1, 1, 2]
    confirm(gallery, [*ids[2:4], ids[4]])
    found = gallery_groups(gallery, Where())[1]
    assert (found.labels.tolist(), found.merges) == ([0, 0, 1, 1, 1], [])


def test_a_clock_that_goes_back(filled, monkeypatch):
    gallery, ids = filled
    for year in (2030, 2020):
        monkeypatch.setattr(
            "modeling_mllmreid.gallery.decisions.utc_now", lambda year=year: datetime(year, 1, 1, tzinfo=UTC)
        )
        made = confirm(gallery, ids[:2], "Ida")
    assert undo(gallery) == made
