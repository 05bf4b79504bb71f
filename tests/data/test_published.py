"""The check against published counts, and the source of rendered people."""

import json

import pytest
from trees import SMALL, write_tree

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.published import PUBLISHED, has_published_counts, published_counts
from modeling_mllmreid.synthetic.worlds import rendered_source
from modeling_mllmreid.synthetic.write import write_pedestrians


def test_published_counts_and_one_image_less():
    for source, known in PUBLISHED.items():
        for counts in known:
            assert has_published_counts(source, counts), source
            train = counts["train"]
            less = {**counts, "train": {**train, "samples": train["samples"] - 1}}
            assert not has_published_counts(source, less), source
            assert has_published_counts(source, {"train": train}), source
        assert not has_published_counts(source, {}) and not has_published_counts(source, {"other": {"samples": 1}})
    assert not has_published_counts("shop", {"train": {"samples": 1}})


def test_small_set_is_not_the_published_one(tmp_path):
    dataset = load_reid_dataset("market1501", data_dir=write_tree(tmp_path, "market1501", SMALL["market1501"]))
    assert published_counts(dataset) == {"market1501": False}
    assert published_counts({}) == {}


def test_rendered_people_keep_their_source_in_every_reader(tmp_path):
    sizes = {"train_identities": 2, "test_identities": 2, "images_per_camera": 2, "cameras": 2}
    write_pedestrians(tmp_path / "people", named="pedestrians", **sizes)
    for reader in ("market1501", "cuhk_pedes"):
        dataset = load_reid_dataset(reader, data_dir=tmp_path / "people")
        assert {source for split in dataset.values() for source in split["source"]} == {"rendered_pedestrians"}
        assert published_counts(dataset) == {}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"world": "earth", "version": 1}', '{"world": 3}', '{"world": "../x", "version": 1}', "[" * 9999],
)
def test_foreign_world_file_is_ignored(tmp_path, content):
    (tmp_path / "world.json").write_text(content)
    assert rendered_source(tmp_path) is None
    (tmp_path / "world.json").write_text(json.dumps({"world": "summer", "version": 1}))
    assert rendered_source(tmp_path) == "rendered_summer" and rendered_source(tmp_path / "absent") is None
