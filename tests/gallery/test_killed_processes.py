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
        files = [read() for _, read in gallery.store.files()]
        for person in range(dying_gallery.PEOPLE):
            there = any(dying_gallery.feature(person).tobytes() in content for content in files)
            assert there == (person in state), (number, changes[-1:])
    assert ended > kills  # the processes did work
    if state:
        loaded, query = gallery.rows(), dying_gallery.feature(0)
        ranking = rank_gallery(query[None], loaded.features, 10)
        found = gallery.search(query, threshold=None)
        assert [hit.id for hit in found.hits] == list(loaded.ids[ranking.indices[0][ranking.indices[0] >= 0]])
        expected = ranking.distances[0][np.isfinite(ranking.distances[0])]
        np.testing.assert_array_equal([hit.distance for hit in found.hits], expected)


@pytest.fixture
def place(tmp_path, encoder):
    other = type(encoder)(numbers=dying_gallery.NUMBERS)
    Gallery.create(tmp_path / "killed", other)
    return tmp_path / "killed"


def test_killed_processes(place):
    check(3, place, seed=0)


@pytest.mark.slow
def test_many_killed_processes(place):
    check(30, place, seed=100)
