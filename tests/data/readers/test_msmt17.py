"""The MSMT17 reader: lists, both versions, both training splits, and wrong lines by number."""

import pytest
from PIL import Image

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

LISTS = {
    "list_train.txt": ["0000/0000_000_01_0303morning_0008_0.jpg 0", "0001/0001_001_15_0303noon_0018_1_ex.jpg 1"],
    "list_val.txt": ["0000/0000_045_12_0303morning_0006_2.jpg 0"],
    "list_query.txt": ["0000/0000_001_02_0113afternoon_0010_0.jpg 0"],
    "list_gallery.txt": ["0000/0000_002_03_0113afternoon_0010_0.jpg 0", "0007/0007_002_03_0113noon_0010_0.jpg 7"],
}


def write_set(root, folders=("train", "test"), lists=LISTS):
    for name, lines in lists.items():
        folder = root / (folders[0] if name in ("list_train.txt", "list_val.txt") else folders[1])
        folder.mkdir(parents=True, exist_ok=True)
        for line in LISTS[name]:
            path = folder / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 4)).save(path)
        (root / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("archive", "folders"),
    [("MSMT17_V1", ("train", "test")), ("MSMT17_V2", ("mask_train_v2", "mask_test_v2")), (".", ("train", "test"))],
)
def test_splits_cameras_and_train_part(tmp_path, caplog, archive, folders):
    write_set(tmp_path / archive, folders)
    dataset = load_reid_dataset("msmt17", data_dir=tmp_path)
    assert {name: len(split) for name, split in dataset.items()} == {"train": 3, "query": 1, "gallery": 2}
    train = dataset["train"]
    assert list(zip(train["person_id"], train["camera_id"], strict=True)) == [(0, 1), (0, 12), (1, 15)]
    assert dataset["gallery"]["person_id"][:] == [0, 7]  # person 0 is a person
    assert dataset["query"]["file_name"][:] == [f"{folders[1]}/0000/0000_001_02_0113afternoon_0010_0.jpg"]
    assert "not the published MSMT17 (with val): train has 3 samples, not 32,621" in caplog.text
    alone = load_reid_dataset("msmt17", data_dir=tmp_path, train_part="without_val")
    assert len(alone["train"]) == 2
    with pytest.raises(UserError, match=r"MSMT17 \(without val\): train has 2 samples, not 30,248"):
        load_reid_dataset("msmt17", data_dir=tmp_path, train_part="without_val", strict=True)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("list_query.txt", "0000/0000_9.jpg 0", "list_query.txt: line 2: '0000/0000_9.jpg 0' is not like"),
        ("list_query.txt", LISTS["list_query.txt"][0][:-2], "line 2: .* is not like"),
        ("list_gallery.txt", "0000/0000_009_03_0113noon_0010_0.jpg 0", "line 3: there is no image .*0000_009_03"),
        ("list_train.txt", "../0000_009_03_0113noon_0010_0.jpg 0", "line 3: path .* is not inside the data folder"),
        ("list_train.txt", "/0000_009_03_0113noon_0010_0.jpg 0", "line 3: path .* is not inside the data folder"),
        ("list_train.txt", LISTS["list_train.txt"][0], "line 3: 0?train/0000/.* is line 1 already"),
    ],
)
def test_wrong_lines(tmp_path, name, line, message):
    write_set(tmp_path, lists={**LISTS, name: [*LISTS[name], line]})
    with pytest.raises(UserError, match=message):
        load_reid_dataset("msmt17", data_dir=tmp_path)
    skipped = load_reid_dataset("msmt17", data_dir=tmp_path, on_error="skip", skipped_file=tmp_path / "skipped.txt")
    assert sum(map(len, skipped.values())) == 6 and len((tmp_path / "skipped.txt").read_text().splitlines()) == 1


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="not in MSMT17 layout: give data_dir the folder with train, test and"):
        load_reid_dataset("msmt17", data_dir=tmp_path)
    write_set(tmp_path)
    (tmp_path / "list_val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="list_val.txt: not UTF-8 text"):
        load_reid_dataset("msmt17", data_dir=tmp_path)
    (tmp_path / "list_val.txt").unlink()
    with pytest.raises(UserError, match="list_val.txt: cannot be read"):
        load_reid_dataset("msmt17", data_dir=tmp_path)
    with pytest.raises(UserError, match="train_part: unknown 'all': use one of with_val, without_val"):
        load_reid_dataset("msmt17", data_dir=tmp_path, train_part="all")
