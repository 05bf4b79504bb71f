"""VIPeR, PRID, GRID, iLIDS, CUHK02 and CUHK-SYSU: their ten splits, split files, persons and cameras."""

import json

import numpy as np
import pytest
from trees import write_tree

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

savemat = pytest.importorskip("scipy.io").savemat


def metadata(dataset):
    return {name: (len(split), len(set(split["person_id"]))) for name, split in dataset.items()}


def check_splits(name, root):
    """Ten splits that differ, each without a person in both training and query, the same at every call."""
    splits = [load_reid_dataset(name, data_dir=root, split=number, strict=True) for number in range(10)]
    queries = [tuple(split["query"]["file_name"]) for split in splits]
    assert len(set(queries)) == 10
    assert queries[3] == tuple(load_reid_dataset(name, data_dir=root, split=3)["query"]["file_name"])
    for split in splits:
        asked = set(split["query"]["person_id"])
        assert asked.isdisjoint(split["train"]["person_id"]) and asked <= set(split["gallery"]["person_id"])
    with pytest.raises(UserError, match="split: 10 is not one of the ten splits: use 0 to 9"):
        load_reid_dataset(name, data_dir=root, split=10)
    return splits[0]


def test_viper(tmp_path):
    root = write_tree(tmp_path, "viper")
    dataset = check_splits("viper", root)
    assert metadata(dataset) == {"train": (632, 316), "query": (316, 316), "gallery": (316, 316)}
    assert set(dataset["query"]["camera_id"]) == {1} and set(dataset["gallery"]["camera_id"]) == {2}


def test_prid(tmp_path):
    dataset = check_splits("prid", write_tree(tmp_path, "prid"))
    assert metadata(dataset) == {"train": (200, 100), "query": (100, 100), "gallery": (649, 649)}


def test_grid(tmp_path):
    root = write_tree(tmp_path, "grid")
    dataset = check_splits("grid", root)
    assert metadata(dataset) == {"train": (250, 125), "query": (125, 125), "gallery": (900, 126)}
    assert set(dataset["train"]["person_id"]) == set(
        np.random.default_rng(0).permutation(np.arange(1, 251))[:125].tolist()
    )
    savemat(root / "features_and_partitions.mat", {"other": 1})
    with pytest.raises(UserError, match="does not have the published partitions"):
        load_reid_dataset("grid", data_dir=root)
    (root / "features_and_partitions.mat").unlink()
    with pytest.raises(UserError, match="features_and_partitions.mat: no such file: restore the published partitions"):
        load_reid_dataset("grid", data_dir=root)


def test_ilids(tmp_path):
    dataset = check_splits("ilids", write_tree(tmp_path, "ilids"))
    assert metadata(dataset) == {"train": (236, 59), "query": (60, 60), "gallery": (60, 60)}
    assert set(dataset["query"]["file_name"]).isdisjoint(dataset["gallery"]["file_name"])


def test_split_files(tmp_path):
    """The three ways torchreid names a split's images: paths with numbers, names alone, persons."""
    trees = {name: write_tree(tmp_path / name, name) for name in ("viper", "ilids", "prid")}
    for name, archive in (("viper", "VIPeR"), ("ilids", "i-LIDS_Pedestrian"), ("prid", "prid_2011")):
        trees[name].rename(tmp_path / name / archive)

    def load(name, splits, split=0, file="splits.json"):
        (tmp_path / name / file).write_text(splits if isinstance(splits, str) else json.dumps(splits))
        dataset = load_reid_dataset(name, data_dir=tmp_path / name, split=split)
        return {split: rows["file_name"][:] for split, rows in dataset.items()}

    a, b = "/reid/viper/VIPeR/cam_a/004_0.bmp", "/reid/viper/VIPeR/cam_b/004_90.bmp"
    train = [["C:\\viper\\VIPeR\\cam_a\\002_0.bmp", 0, 0], ["C:\\viper\\VIPeR\\cam_b\\002_90.bmp", 0, 1]]
    there = {"train": train, "query": [[a, 0, 0]], "gallery": [[b, 0, 1]], "num_train_pids": 1}
    back = {**there, "query": there["gallery"], "gallery": there["query"]}
    trained = ["cam_a/002_0.bmp", "cam_b/002_90.bmp"]
    assert load("viper", [there, back]) == {
        "train": trained,
        "query": ["cam_a/004_0.bmp"],
        "gallery": ["cam_b/004_90.bmp"],
    }
    assert load("viper", [there, back], split=1)["query"] == ["cam_b/004_90.bmp"]
    images = {"train": ["0001001.jpg"], "query": ["0002001.jpg"], "gallery": ["0002002.jpg"]}
    assert load("ilids", [images])["gallery"] == ["Persons/0002002.jpg"]
    persons = [{"train": [*range(2, 201)], "test": [1]}]
    of_prid = load("prid", persons, file="splits_single_shot.json")
    assert of_prid["query"] == ["single_shot/cam_a/person_0001.png"] and len(of_prid["gallery"]) == 1 + 549
    for splits, message in (
        ([there], "splits.json: split 1 is not one of its 1 splits: use 0 to 0"),
        ("[", "splits.json: not JSON "),
        (persons, r"splits.json: field \[0\].train\[0\]\S*: input should be .*: restore the file or move it away"),
        ([{**there, "query": [["x/cam_a/999_0.bmp", 1, 1]]}] * 2, "names 'x/cam_a/999_0.bmp', which is not in the set"),
    ):
        with pytest.raises(UserError, match=message):
            load("viper", splits, split=1)


def test_cuhk02(tmp_path):
    root = write_tree(tmp_path, "cuhk02")
    train = load_reid_dataset("cuhk02", data_dir=root, strict=True)["train"]
    assert set(train["camera_id"]) == set(range(1, 11)) and min(train["person_id"]) == 10_001
    (root / "P5/cam2").rename(root / "P5/x")
    with pytest.raises(UserError, match="P5/cam2: no such folder: give data_dir the folder with P1 to P5"):
        load_reid_dataset("cuhk02", data_dir=root)


@pytest.mark.parametrize("folder", ["cropped_images", "cropped_image", "."])
def test_cuhk_sysu(tmp_path, caplog, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("p1_s1_2.png", "p1_s4_5.png", "p11422_s16929_1.jpg"):
        (tmp_path / folder / name).touch()
    train = load_reid_dataset("cuhk_sysu", data_dir=tmp_path)["train"]
    assert sorted(train["person_id"]) == [1, 1, 11_422] and set(train["camera_id"]) == {-1}
    assert "train has 3 samples, not 34,574" in caplog.text
