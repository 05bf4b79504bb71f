"""SIGKILL at random moments: no acknowledged row is lost, no erased row comes back, the gallery opens again."""

import json
import subprocess
import sys
import time
from pathlib import Path

import dying_gallery
import numpy as np
import pytest

from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.retrieval.ranking import rank_gallery


def kill_once(place: Path, seed: int, seconds: float) -> list[tuple[list, bool]]:
    """Runs changes, and kills the process after some time; returns the changes, and whether each has ended."""
    command = [sys.executable, dying_gallery.__file__, str(place), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(seconds)
        process.kill()
        lines = process.stdout.read().splitlines()
    changes = []
    for line in lines:
        if line == "done":
            changes[-1] = (changes[-1][0], True)
        elif line.endswith("]"):
            changes.append((json.loads(line), False))
    return changes


def after(state: dict[int, int], change: list) -> dict[int, int]:
    """Returns the version of each person's row after a change."""
    kind, people, version = change
    if kind == "index":
        return state
    kept = {person: value for person, value in state.items() if person not in people}
    return {**state, **dict.fromkeys(people, version)} if kind == "add" else kept


def check(kills: int, place: Path, seed: int) -> None:
    """Kills a process again and again, and compares the gallery with what was acknowledged."""
    random = np.random.default_rng(seed)
    state: dict[int, int] = {}
    ended = 0
    for number in range(kills):
        changes = kill_once(place, seed + number, random.uniform(0, 0.4))
        before = state
        for change, done in changes:
            before, state = state, after(state, change)
            ended += done
        gallery = Gallery(place)
        rows = {int(hit.id, 16): hit.crop for hit in gallery.find()}
        found = {person: crop.camera_id for person, crop in rows.items()}
        if changes and not changes[-1][1]:
            # An addition is one commit. A deletion is one too, and the rows of `expire` are first marked.
            assert found in (before, state), changes[-1]
        else:
            assert found == state
        state = found
        gallery.expire()
        for person in rows.keys() - {int(hit.id, 16) for hit in gallery.find()}:
            assert rows[person].expires is not None
            del state[person]
        files = [file().read() for _, file in gallery.store.files()]
        for person in range(0, dying_gallery.PEOPLE, 2):
            there = any(dying_gallery.feature(person).tobytes() in content for content in files)
            assert there == bool({person, person + 1} & state.keys()), (number, changes[-1:])
        check_ranking(gallery, state, query=dying_gallery.feature(number % dying_gallery.PEOPLE))
    assert ended > kills  # the processes did work


def check_ranking(gallery: Gallery, state: dict[int, int], query: np.ndarray) -> None:
    """Compares a search with `rank_gallery` on the features of the people that have to be there."""
    people = sorted(state, key=dying_gallery.digest)
    found = gallery.search(query, k=10, threshold=None)
    if not people:
        assert not found.hits
        return
    ranking = rank_gallery(query[None], np.stack([dying_gallery.feature(person) for person in people]), 10)
    ranked = ranking.indices[0] >= 0
    assert [int(hit.id, 16) for hit in found.hits] == [people[place] for place in ranking.indices[0][ranked]]
    np.testing.assert_array_equal([hit.distance for hit in found.hits], ranking.distances[0][ranked])


@pytest.fixture
def place(tmp_path, encoder):
    other = type(encoder)(numbers=dying_gallery.NUMBERS)
    Gallery.create(tmp_path / "killed", other)
    return tmp_path / "killed"


def test_killed_processes(place):
    check(3, place, seed=0)


@pytest.mark.slow
def test_two_hundred_killed_processes(place):
    check(200, place, seed=100)
