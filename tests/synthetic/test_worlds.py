"""The worlds: always the same, apart from one another, read like any other set."""

import json
from dataclasses import replace

import pytest

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.readers import rendered
from modeling_mllmreid.synthetic import write
from modeling_mllmreid.synthetic.flat.worlds import WORLDS as FLAT_WORLDS
from modeling_mllmreid.synthetic.people.attributes import Crowd, change_clothes, make_person
from modeling_mllmreid.synthetic.people.captions import attribute_words, tokenize
from modeling_mllmreid.synthetic.worlds import DEFAULT, WORLDS
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

FEW = {"train_identities": 3, "test_identities": 2, "images_per_camera": 2, "cameras": 3}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture
def small_worlds(monkeypatch):
    """Every world with a handful of people."""
    for name, world in WORLDS.items():
        people = {"train_identities": min(world.train_identities, 2), "test_identities": min(world.test_identities, 2)}
        images = min(world.images_per_camera, 2)
        small = replace(world, cameras=3, images_per_camera=images, distractors=min(world.distractors, 2), **people)
        monkeypatch.setitem(WORLDS, name, small)


def test_names_are_new_and_worlds_share_no_seed():
    assert not WORLDS.keys() & FLAT_WORLDS.keys()
    seeds = [DEFAULT.seed, *(world.seed for world in WORLDS.values())]
    assert len(set(seeds)) == len(seeds)
    assert all(world.test_identities >= 60 for world in WORLDS.values())
    assert sum(world.scenes for world in WORLDS.values()) > 300


def test_files_are_a_function_of_the_world_in_any_number_of_processes(tmp_path):
    written = write_pedestrians(tmp_path / "one", **FEW)
    assert (written.train_images, written.query_images, written.gallery_images) == (18, 6, 6)
    write_pedestrians(tmp_path / "two", **FEW, processes=2)
    write_pedestrians(tmp_path / "more", **{**FEW, "train_identities": 4})
    write_pedestrians(tmp_path / "other", **FEW, seed=1)
    one, more = files(tmp_path / "one"), files(tmp_path / "more")
    assert one == files(tmp_path / "two")
    images = {name: data for name, data in one.items() if name.startswith("bounding_box_train")}
    assert images.items() <= more.items() and not images.items() & files(tmp_path / "other").items()


def test_records_hold_the_captions_of_every_image(tmp_path):
    write_pedestrians(tmp_path / "people", **FEW, captions_per_image=3)
    records = json.loads((tmp_path / "people" / "reid_raw.json").read_text())
    assert {record["file_path"] for record in records} == {
        name for name in files(tmp_path / "people") if name.endswith(".jpg")
    }
    for record in records:
        assert len(record["captions"]) == 3
        assert record["processed_tokens"] == [tokenize(text) for text in record["captions"]]
        assert all(len(attribute_words(text)) >= 2 for text in record["captions"])
    cameras = {record["file_path"].split("_c")[1].split("s")[0] for record in records}
    assert len(cameras) > 6  # each person passes three of 24


def test_every_world_is_read_with_what_it_is_for(small_worlds, tmp_path):
    for name, world in WORLDS.items():
        dataset = load_reid_dataset(f"rendered_{name}", data_dir=tmp_path / name)
        splits = {"query", "gallery"} | ({"train"} if world.train_identities else set())
        assert set(dataset) == splits, name
        gallery = dataset["gallery"]
        assert set(gallery["source"]) == {f"rendered_{name}"} and all(gallery["caption"][:])
        assert gallery["person_id"][:].count(0) == world.distractors
        assert ("clothes_id" in gallery.column_names) == (world.outfits > 1)
        assert ("track_id" in gallery.column_names) == world.tracks
        if world.outfits > 1:
            rows = list(zip(gallery["person_id"][:], gallery["camera_id"][:], gallery["clothes_id"][:], strict=True))
            for person in set(gallery["person_id"][:]):
                assert len({clothes for p, _, clothes in rows if p == person}) == world.outfits
            assert len({clothes for *_, clothes in rows}) == world.outfits * len(set(gallery["person_id"][:]))
        if world.tracks:
            persons = len(set(gallery["person_id"][:]))
            assert len(set(gallery["track_id"][:])) == persons * world.cameras


def test_other_clothes_are_worn_by_the_same_body():
    for index in range(20):
        person = make_person(1, "train", index)
        changed = change_clothes(1, "train 1", index, person)
        assert changed.body == person.body and changed.outfit.detail != person.outfit.detail
        assert changed == change_clothes(1, "train 1", index, person)


def test_a_world_is_rendered_once_and_not_read_as_another(small_worlds, tmp_path, monkeypatch, capsys):
    load_reid_dataset("rendered_elsewhere", data_dir=tmp_path / "set")
    assert f"rendering into {tmp_path / 'set'}" in capsys.readouterr().out
    monkeypatch.setattr(rendered, "write_world", lambda *_: pytest.fail("rendered again"))
    load_reid_dataset("rendered_elsewhere", data_dir=tmp_path / "set")
    with pytest.raises(UserError, match="has the world 'elsewhere', version 1, not 'doubles', version 1: give another"):
        load_reid_dataset("rendered_doubles", data_dir=tmp_path / "set")


def test_a_world_is_rendered_on_all_cores(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(write, "map_in_processes", lambda *given: started.append(given[2]) or (row for row in []))
    monkeypatch.setattr(write, "useful_processes", lambda people: people // 100)
    write.write_world(tmp_path / "set", "elsewhere")
    assert started == [4]


def test_numbers_out_of_range_and_full_folders_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not an empty folder: give a new folder or empty this one"):
        write_pedestrians(tmp_path, **FEW)
    for change, message in (
        ({"cameras": 25}, "cameras is 25: give 1 to 24"),
        ({"outfits": 4}, "outfits is 4: give 1 to 3"),
        ({"test_identities": 10_000}, "test_identities is 10000: give 0 to 9999"),
        ({"images_per_camera": 1}, "images_per_camera is 1: give 2 to 9999"),
        ({"train_identities": 0, "test_identities": 0}, "train_identities is 0: give 1 to 9999"),
        ({"distractors": -1}, "distractors is -1: give 0 to 9999"),
        ({"distractors": 1, "test_identities": 0}, "distractors is 1: give 0 to 0"),
        ({"size": (0, 64)}, "height is 0: give 1 to 4096"),
        ({"size": (128, -1)}, "width is -1: give 1 to 4096"),
        ({"crowd": Crowd(0, 0)}, "crowd.size is 0: give 1 to 9999"),
        ({"crowd": Crowd(3, 3)}, "crowd.copies is 3: give 0 to 2"),
        ({"season": "spring"}, "season is 'spring': give one of mild, summer, winter"),
        ({"processes": 0}, "processes is 0: give 1 to 128"),
        ({"captions_per_image": -1}, "captions_per_image is -1: give 0 to 100"),
    ):
        with pytest.raises(UserError, match=message):
            write_pedestrians(tmp_path / "new", **{**FEW, **change})
    assert not (tmp_path / "new").exists()


def test_a_set_of_training_people_alone_is_read(tmp_path):
    write_pedestrians(tmp_path / "set", **{**FEW, "test_identities": 0, "images_per_camera": 1})
    assert {split: len(rows) for split, rows in load_reid_dataset("market1501", data_dir=tmp_path / "set").items()} == {
        "train": 9
    }


def test_an_interrupted_world_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_mllmreid.synthetic.write.render", stop)
    with pytest.raises(KeyboardInterrupt):
        write_pedestrians(tmp_path / "set", **FEW)
    assert list(tmp_path.iterdir()) == []
