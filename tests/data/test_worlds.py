"""The rendered worlds: fixed, apart from one another, read like any other set, hard where they shall be."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.data import load_reid_dataset
from modeling_mllmreid.data.readers import rendered
from modeling_mllmreid.data.synthetic import WORLDS, attribute_words, write_pedestrians, write_world
from modeling_mllmreid.data.synthetic.attributes import Crowd, make_person
from modeling_mllmreid.data.synthetic.wardrobes import FIRMS
from modeling_mllmreid.errors import UserError
from modeling_mllmreid.evaluation.protocol import histogram_row, same_person

SMALL = {"train_identities": 5, "test_identities": 3, "images_per_camera": 2}


@pytest.fixture
def small_worlds(monkeypatch):
    """Every world with a handful of people and two distractors."""
    for name, world in WORLDS.items():
        monkeypatch.setitem(WORLDS, name, replace(world, distractors=2 * (name == "lookalikes"), **SMALL))


def pixels(folder) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), dtype=float) for path in sorted(folder.rglob("*.jpg"))])


def test_worlds_are_always_the_same_and_look_apart(small_worlds, tmp_path):
    seen = {}
    for name in WORLDS:
        write_world(tmp_path / name, name)
        write_world(tmp_path / f"{name} again", name)
        seen[name] = pixels(tmp_path / name)
        assert np.array_equal(seen[name], pixels(tmp_path / f"{name} again"))
    # How sharp images are, and their mean colour: what a network sees at once.
    signature = {
        name: np.array([*images.mean((0, 1, 2)), 4 * np.abs(np.diff(images, axis=2)).mean()])
        for name, images in seen.items()
    }
    for one in WORLDS:
        for other in WORLDS:
            if one < other:
                assert np.abs(signature[one] - signature[other]).max() > 6, (one, other)


def test_people_wear_what_their_world_wears():
    def people(name):
        world = WORLDS[name]
        return [make_person(world.seed, "train", index, world.crowd, world.dress) for index in range(100)]

    assert {"coat", "hoodie"}.isdisjoint(p.upper for p in people("summer"))
    assert sum(p.sleeves == "long" for p in people("winter")) >= 90 and sum(bool(p.hat) for p in people("winter")) > 50
    originals = {(p.upper, p.upper_color, p.lower_color) for p in people("uniforms")}
    assert originals <= {(firm[0], firm[1], firm[5]) for firm in FIRMS}
    everyone = people("lookalikes")
    for first in range(0, 100, 5):
        for person in everyone[first + 1 : first + 5]:
            changed = [name for name, value in vars(person).items() if value != vars(everyone[first])[name]]
            assert 1 <= len(changed) <= 5, changed


def test_a_crowd_without_copies_has_none():
    assert make_person(0, "train", 4, Crowd(copies=0)) != make_person(0, "train", 4, Crowd())


def test_a_world_is_rendered_once_and_read_with_its_captions(small_worlds, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data" / "lookalikes"
    dataset = load_reid_dataset("rendered_lookalikes", data_dir=folder)
    assert f"rendered into {folder}" in capsys.readouterr().out
    assert set(dataset["train"]["source"]) == {"rendered_lookalikes"} and all(dataset["train"]["caption"][:])
    gallery = dataset["gallery"]["person_id"][:]
    assert gallery.count(0) == 2 and 0 not in dataset["query"]["person_id"][:] + dataset["train"]["person_id"][:]
    assert len(set(dataset["query"]["camera_id"][:])) == 6
    monkeypatch.setattr(rendered, "write_world", lambda *_: pytest.fail("rendered again"))
    again = load_reid_dataset("rendered_lookalikes", data_dir=folder)
    assert again["train"]["file_name"][:] == dataset["train"]["file_name"][:]


def test_one_world_is_not_read_as_another(small_worlds, tmp_path):
    load_reid_dataset("rendered_summer", data_dir=tmp_path / "summer")
    with pytest.raises(UserError, match=r"holds the world 'summer', version 1, not 'winter', version 1: give another"):
        load_reid_dataset("rendered_winter", data_dir=tmp_path / "summer")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"mine: no world.json in it, so not the data set rendered_winter: give a new"):
        load_reid_dataset("rendered_winter", data_dir=tmp_path / "mine")
    stale = tmp_path / "summer" / "world.json"
    stale.write_text(json.dumps({"world": "summer", "version": 0}))
    with pytest.raises(UserError, match="version 0, not 'summer', version 1: give another folder, or remove this one"):
        load_reid_dataset("rendered_summer", data_dir=tmp_path / "summer")


def test_worlds_combine_for_training_on_some_and_testing_on_another(small_worlds, tmp_path):
    folders = {f"rendered_{name}": str(tmp_path / name) for name in ("summer", "winter", "uniforms")}
    dataset = load_reid_dataset("rendered_summer+rendered_winter>rendered_uniforms", data_dirs=folders)
    assert set(dataset["train"]["source"]) == {"rendered_summer", "rendered_winter"}
    assert set(dataset["query"]["source"]) == {"rendered_uniforms"}
    assert len(set(dataset["train"]["person_id"][:])) == 10
    every = load_reid_dataset("rendered_summer+rendered_winter:all>rendered_uniforms", data_dirs=folders)
    assert len(set(every["train"]["person_id"][:])) == 16


def test_captions_keep_to_one_vocabulary(small_worlds, tmp_path):
    words = set()
    for name in WORLDS:
        write_world(tmp_path / name, name)
        for record in json.loads((tmp_path / name / "reid_raw.json").read_text()):
            assert all(attribute_words(caption) for caption in record["captions"])
            words |= {word for tokens in record["processed_tokens"] for word in tokens}
    assert len(words) < 150


def test_cameras_are_those_of_the_world(tmp_path):
    with pytest.raises(UserError, match="cameras is 5: give 1 to 4"):
        write_pedestrians(tmp_path / "x", cameras=5, world=WORLDS["winter"])


@pytest.mark.slow
def test_a_colour_histogram_fails_on_the_hard_world(tmp_path):
    dataset = load_reid_dataset("rendered_lookalikes", data_dir=tmp_path / "lookalikes")
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 9000, "query": 3000, "gallery": 7000}
    parts = (dataset["query"], dataset["gallery"])
    found = histogram_row(*parts, same_person(*parts))
    assert found.mAP < 0.02 and found.cmc[1] < 0.02
