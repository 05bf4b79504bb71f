"""CUHK03: the new protocol's indexes, views as cameras, and images straight from an archive like the genuine one."""

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

h5py = pytest.importorskip("h5py")
savemat = pytest.importorskip("scipy.io").savemat

NAMES = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "2_001_1_01.png", "2_001_2_07.png"]


def write_protocol(root, boxes="detected", names=NAMES, **fields):
    """Persons 1, 1, 2, 3, 3; person 1 is trained on, the others are tested on. Indexes count from 1."""
    filelist = np.array(names, dtype=object)[:, None]
    config = {"filelist": filelist, "labels": [[1], [1], [2], [3], [3]], "camId": [[1], [2], [1], [1], [2]]}
    config |= {"train_idx": [[1], [2]], "query_idx": [[5]], "gallery_idx": [[3], [4]], **fields}
    savemat(root / f"cuhk03_new_protocol_config_{boxes}.mat", {k: v for k, v in config.items() if v is not None})
    return root


def write_images(root, folder="images_detected"):
    (root / folder).mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (4, 8)).save(root / folder / name)
    return root


def test_indexes_views_and_persons(tmp_path, caplog):
    write_images(write_protocol(tmp_path))
    dataset = load_reid_dataset("cuhk03", data_dir=tmp_path)
    assert {name: split["file_name"][:] for name, split in dataset.items()} == {
        "train": [f"images_detected/{name}" for name in NAMES[:2]],
        "query": [f"images_detected/{NAMES[4]}"],
        "gallery": [f"images_detected/{name}" for name in NAMES[2:4]],
    }
    assert dataset["query"]["person_id"][:] == [3] and dataset["query"]["camera_id"][:] == [2]
    assert "CUHK03-NP, detected: train has 2 samples, not 7,365" in caplog.text
    write_images(write_protocol(tmp_path, "labeled"), "images_labeled")
    with pytest.raises(UserError, match="CUHK03-NP, labelled: train has 2 samples, not 7,368"):
        load_reid_dataset("cuhk03", data_dir=tmp_path, boxes="labelled", strict=True)


def test_images_from_the_archive(tmp_path):
    """Two pairs, as MATLAB stores them: cells of references, images with their axes turned; an empty cell is none."""
    root = write_protocol(tmp_path)
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (8, 4, 3), dtype=np.uint8) for name in NAMES}
    with h5py.File(root / "cuhk-03.mat", "w") as mat:
        pairs = mat.create_dataset("detected", (1, 2), dtype=h5py.ref_dtype)
        for pair, persons in ((1, 2), (2, 1)):
            cells = mat.create_dataset(f"cells{pair}", (10, persons), dtype=h5py.ref_dtype)
            for place, person in np.ndindex(10, persons):
                name = f"{pair}_{person + 1:03d}_{1 if place < 5 else 2}_{place + 1:02d}.png"
                pixels = pictures[name].T if name in pictures else np.zeros(2, dtype=np.uint64)
                cells[place, person] = mat.create_dataset(f"image{pair}_{person}_{place}", data=pixels).ref
            pairs[0, pair - 1] = cells.ref
    dataset = load_reid_dataset("cuhk03", data_dir=root)
    assert sorted(path.name for path in (root / "images_detected").iterdir()) == sorted(NAMES)
    for row in dataset["train"]:
        np.testing.assert_array_equal(np.asarray(row["image"]), pictures[row["file_name"].split("/")[1]])
    (root / "cuhk-03.mat").unlink()
    assert len(load_reid_dataset("cuhk03", data_dir=root)["gallery"]) == 2


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no images_detected and no cuhk-03.mat: give data_dir the folder"):
        load_reid_dataset("cuhk03", data_dir=tmp_path)
    write_images(tmp_path)
    with pytest.raises(UserError, match="config_detected.mat: no such file: put the new protocol's file there"):
        load_reid_dataset("cuhk03", data_dir=tmp_path)
    write_protocol(tmp_path, query_idx=None)
    with pytest.raises(UserError, match="has no query_idx: give the new protocol's file"):
        load_reid_dataset("cuhk03", data_dir=tmp_path)
    write_protocol(tmp_path, names=["1_001_3_01.png", *NAMES[1:]])
    with pytest.raises(UserError, match="1_001_3_01.png: not a name like 1_001_1_01.png"):
        load_reid_dataset("cuhk03", data_dir=tmp_path)
    write_protocol(tmp_path)
    (tmp_path / "images_detected" / NAMES[4]).unlink()
    with pytest.raises(UserError, match="2_001_2_07.png: no such image in .*images_detected: restore the set"):
        load_reid_dataset("cuhk03", data_dir=tmp_path)
    with pytest.raises(UserError, match="boxes: unknown 'labeled': use one of detected, labelled"):
        load_reid_dataset("cuhk03", data_dir=tmp_path, boxes="labeled")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/cuhk-03.mat").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cuhk-03.mat: not readable as CUHK03's archive"):
        load_reid_dataset("cuhk03", data_dir=tmp_path / "bad")
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["cuhk-03.mat"]
