"""VIPeR, PRID, GRID, iLIDS, CUHK02 and CUHK-SYSU: trees of their names at their full size."""

import numpy as np
import pytest

from modeling_mllmreid.data import load_reid_dataset
from modeling_mllmreid.errors import UserError

savemat = pytest.importorskip("scipy.io").savemat


def touch(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def facts(dataset):
    return {split: (len(part), len(set(part["person_id"]))) for split, part in dataset.items()}


def check_splits(name, root):
    """Ten splits that differ, each without a person in both training and query, the same at every call."""
    splits = [load_reid_dataset(name, data_dir=root, split=number, strict=True) for number in range(10)]
    queries = [tuple(split["query"]["file_name"]) for split in splits]
    assert len(set(queries)) == 10
    assert queries[3] == tuple(load_reid_dataset(name, data_dir=root, split=3)["query"]["file_name"])
    for split in splits:
        asked = set(split["query"]["person_id"])
        assert asked.isdisjoint(split["train"]["person_id"]) and asked <= set(split["gallery"]["person_id"])
    with pytest.raises(UserError, match="split: 10 is none of the ten: use 0 to 9"):
        load_reid_dataset(name, data_dir=root, split=10)
    return splits[0]


def test_viper(tmp_path):
    for camera, angle in (("cam_a", 0), ("cam_b", 90)):
        touch(tmp_path / "VIPeR" / camera, [f"{person:03d}_{angle}.bmp" for person in range(0, 1264, 2)])
    dataset = check_splits("viper", tmp_path)
    assert facts(dataset) == {"train": (632, 316), "query": (316, 316), "gallery": (316, 316)}
    assert set(dataset["query"]["camera_id"]) == {1} and set(dataset["gallery"]["camera_id"]) == {2}
    (tmp_path / "VIPeR/cam_a/readme.bmp").touch()
    with pytest.raises(UserError, match="cam_a/readme.bmp: not a name of this set"):
        load_reid_dataset("viper", data_dir=tmp_path)


def test_prid(tmp_path):
    touch(tmp_path / "prid_2011/single_shot/cam_a", [f"person_{person:04d}.png" for person in range(1, 386)])
    touch(tmp_path / "prid_2011/single_shot/cam_b", [f"person_{person:04d}.png" for person in range(1, 750)])
    dataset = check_splits("prid", tmp_path)
    assert facts(dataset) == {"train": (200, 100), "query": (100, 100), "gallery": (649, 649)}


def test_grid(tmp_path):
    root = tmp_path / "underground_reid"
    touch(root / "probe", [f"{person:04d}_{1 + person % 8}_25004_107_32_106_221.jpeg" for person in range(1, 251)])
    pairs = [f"{person:04d}_{1 + (person + 1) % 8}_25009_7_3_10_22.jpeg" for person in range(1, 251)]
    touch(root / "gallery", [*pairs, *(f"0000_{1 + n % 8}_{n:05d}_1_2_3_4.jpeg" for n in range(775))])
    with pytest.raises(UserError, match="features_and_partitions.mat: no such file: restore the published partitions"):
        load_reid_dataset("grid", data_dir=tmp_path)
    partitions = np.empty((1, 10), dtype=object)
    for number in range(10):
        people = np.random.default_rng(number).permutation(np.arange(1, 251))[:125]
        partitions[0, number] = np.array([[(0, 0, people[None])]], dtype=[("a", object), ("b", object), ("c", object)])
    savemat(root / "features_and_partitions.mat", {"trainIdxAll": partitions})
    dataset = check_splits("grid", tmp_path)
    assert facts(dataset) == {"train": (250, 125), "query": (125, 125), "gallery": (900, 126)}
    assert set(dataset["train"]["person_id"]) == set(
        np.random.default_rng(0).permutation(np.arange(1, 251))[:125].tolist()
    )
    savemat(root / "features_and_partitions.mat", {"other": 1})
    with pytest.raises(UserError, match="holds no partitions as published"):
        load_reid_dataset("grid", data_dir=tmp_path)


def test_ilids(tmp_path):
    images = [f"{person:04d}{number:03d}.jpg" for person in range(1, 120) for number in range(1, 5)]
    touch(tmp_path / "i-LIDS_Pedestrian/Persons", images)
    dataset = check_splits("ilids", tmp_path)
    assert facts(dataset) == {"train": (236, 59), "query": (60, 60), "gallery": (60, 60)}
    assert set(dataset["query"]["file_name"]).isdisjoint(dataset["gallery"]["file_name"])


def test_cuhk02(tmp_path):
    people = [971, 306, 107, 193, 239]
    for pair, count in enumerate(people, start=1):
        for camera in (1, 2):
            names = [f"{person:03d}_{number}.png" for person in range(1, count + 1) for number in (1, 2)]
            touch(tmp_path / f"Dataset/P{pair}/cam{camera}", names)
    train = load_reid_dataset("cuhk02", data_dir=tmp_path, strict=True)["train"]
    assert set(train["camera_id"]) == set(range(1, 11)) and min(train["person_id"]) == 10_001
    (tmp_path / "Dataset/P5/cam2").rename(tmp_path / "Dataset/P5/x")
    with pytest.raises(UserError, match="P5/cam2: no such folder: give data_dir the folder that holds P1 to P5"):
        load_reid_dataset("cuhk02", data_dir=tmp_path)


def test_cuhk_sysu(tmp_path, caplog):
    touch(tmp_path / "cropped_image", ["p1_s1_2.png", "p1_s4_5.png", "p77_s4_5.png"])
    train = load_reid_dataset("cuhk_sysu", data_dir=tmp_path)["train"]
    assert train["person_id"][:] == [1, 1, 77] and set(train["camera_id"]) == {-1}
    assert "train has 3 rows, not 34,574" in caplog.text
    (tmp_path / "cropped_image/s1.png").touch()
    with pytest.raises(UserError, match="s1.png: not a name like p1_s1_2.png"):
        load_reid_dataset("cuhk_sysu", data_dir=tmp_path)
