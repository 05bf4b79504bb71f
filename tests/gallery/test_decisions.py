"""Decisions of a human: what they change, that they can be undone, and that an erasure takes them along."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import dying_gallery
import lance
import numpy as np
import pytest

from modeling_mllmreid.gallery.decisions import confirm, decisions, rename, split, undo
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.utils.errors import UserError


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
        (lambda g, ids: confirm(g, []), "no row is chosen: give conditions, or groups of a file of `gallery groups`"),
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
        (lambda g, ids: rename(g, "Ida", "Ida"), "rename: 'Ida' is the name already: give another one"),
        (lambda g, ids: split(g, ids[2:5]), "split: the rows do not have one name: choose rows of one named person"),
        (lambda g, ids: split(g, ids[6:]), "split: the rows do not have one name"),
        (lambda g, ids: split(g, ids[:3]), "split: these are all rows of 'Ida': use rename to give another name"),
        (lambda g, ids: split(g, ids[:1], "Ida"), "split: 'Ida' is the name that the rows have: give another one"),
        (lambda g, ids: undo(g, "no"), "undo: there is no decision 'no': list them"),
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
