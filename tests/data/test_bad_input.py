"""Wrong input to every reader: one line names the problem, and foreign files are not changed."""

import json
from pathlib import Path

import pytest
from PIL import Image
from trees import SMALL, set_images, write_tree

from modeling_mllmreid.data import images
from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.images import check_images
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

# The text sets: their captions file, and its field of an image's path.
CAPTION_SETS = {
    "cuhk_pedes": ("reid_raw.json", "file_path"),
    "icfg_pedes": ("ICFG-PEDES.json", "file_path"),
    "rstpreid": ("data_captions.json", "img_path"),
}
# The readers whose rows are listed in a file, and those whose rows are the images with a name of the set.
LISTED = ("msmt17", "cuhk03", "table", *CAPTION_SETS)
NAMED = [name for name in SMALL if name not in (*LISTED, "folders")]
ALL = list(SMALL)


@pytest.fixture
def small(tmp_path):
    return lambda name: write_tree(tmp_path, name, SMALL[name])


@pytest.fixture
def load(tmp_path):
    """Loads a set whose mistakes are left out and listed in tmp_path / "skipped.txt"."""
    skipping = {"on_error": "skip", "skipped_file": tmp_path / "skipped.txt"}
    return lambda name, root, skip=False: load_reid_dataset(name, data_dir=root, **(skipping if skip else {}))


def size(dataset):
    return {name: len(split) for name, split in dataset.items()}


def last_image(root):
    """The last image of the set under the folder."""
    return set_images(root)[-1]


def refused(name, root, match):
    with pytest.raises(UserError, match=match) as caught:
        load_reid_dataset(name, data_dir=root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_missing_or_renamed_folder(small, name):
    root = small(name)
    where = root / "imgs" if (root / "imgs").is_dir() else root
    folders = sorted({where / path.relative_to(where).parts[0] for path in set_images(root) if path.parent != where})
    if folders and name != "folders":
        folders[0].rename(where / "renamed")
        refused(name, root, "no such folder|no folder|not in .* layout|there is no image|no images_detected|restore")
    refused(name, root / "absent", "absent")


@pytest.mark.parametrize("name", NAMED)
def test_stray_image_and_wrong_file_name(small, load, tmp_path, name):
    root = small(name)
    before = size(load(name, root))
    image = last_image(root)
    for stray in (f"holiday{image.suffix}", f"x{image.name}", f"{image.stem}.1{image.suffix}"):
        path = image.with_name(stray)
        path.write_bytes(image.read_bytes())
        assert str(path) in refused(name, root, "not a name (like|of)")
        assert size(load(name, root, skip=True)) == before
        assert str(path) in (tmp_path / "skipped.txt").read_text()
        path.unlink()


@pytest.mark.parametrize("name", LISTED)
def test_missing_listed_image_and_unlisted_image(small, load, tmp_path, name):
    root = small(name)
    before = sum(size(load(name, root)).values())
    image = last_image(root)
    (image.parent / "holiday.jpg").write_bytes(image.read_bytes())
    assert sum(size(load(name, root)).values()) == before  # the list says what belongs to the set
    image.rename(image.with_suffix(f".other{image.suffix}"))
    assert image.name in refused(name, root, "there is no image|no such image")
    left = size(load(name, root, skip=True))
    assert sum(left.values()) < before and image.name in (tmp_path / "skipped.txt").read_text()


@pytest.mark.parametrize("name", ALL)
def test_broken_image_and_decompression_bomb(small, load, tmp_path, name, monkeypatch):
    root = small(name)
    before = load(name, root)
    used = {source for split in before.values() for source in image_sources(split)}
    broken, bomb = sorted(used)[-1], sorted(used)[0]
    for path in (broken, bomb):
        Path(path).unlink()  # they are links to one file
    Path(broken).write_bytes(b"\xff\xd8\xff no image")
    Image.new("RGB", (100, 101)).save(bomb)
    monkeypatch.setattr(images.open_image, "__kwdefaults__", {"max_pixels": 10_000})
    monkeypatch.setattr(images.broken_images, "__kwdefaults__", {"threads": 2, "max_pixels": 10_000})
    with pytest.raises(UserError, match="2 of .* images cannot be used: ") as caught:
        check_images(sorted(used))
    assert broken in str(caught.value) and "too large an image" in str(caught.value)
    left = load(name, root, skip=True)
    assert not {broken, bomb} & {source for split in left.values() for source in image_sources(split)}
    assert {broken, bomb} <= {line.split(": ")[0] for line in (tmp_path / "skipped.txt").read_text().splitlines()}


@pytest.mark.parametrize("name", CAPTION_SETS)
def test_wrong_entries_of_captions_files(small, load, tmp_path, name):
    root = small(name)
    path, key = root / CAPTION_SETS[name][0], CAPTION_SETS[name][1]
    entries = json.loads(path.read_text())
    before = size(load(name, root))["train"]

    def mistake(match, **fields):
        wrong = {field: value for field, value in {**entries[0], **fields}.items() if value is not None}
        path.write_text(json.dumps([wrong, *entries[1:]]))
        assert "entry 0" in refused(name, root, match)
        assert size(load(name, root, skip=True))["train"] == before - 1

    mistake(f"field '{key}': is missing: give the image's path", **{key: None}, image=entries[0][key])
    mistake("field id: field required", id=None, person=3)
    for wrong in ("7", 2**63, -1, 7.0, True, [7]):
        mistake("field id: input should be", id=wrong)
    for wrong in (7, ["a.jpg"], {}):
        mistake(f"field '{key}': is of type", **{key: wrong})
    mistake("field 'captions': one is an empty text", captions=["a man", ""])
    mistake("one has 5,000 characters", captions=["x" * 5_000])
    mistake("is not inside the data folder", **{key: f"../imgs/{entries[0][key]}"})
    mistake("is not inside the data folder", **{key: str(root / "imgs" / entries[0][key])})
    mistake("there is no image", **{key: entries[0][key].replace(".", "9.")})
    path.write_text(json.dumps([*entries, entries[0]]))
    assert f"entry {len(entries)}" in refused(name, root, "is entry 0 already: put all captions of an image into one")
    path.write_bytes(json.dumps(entries).encode().replace(b"red", b"r\xe9d"))
    refused(name, root, r"not UTF-8 text \(byte [0-9]+\): save it as UTF-8")


def test_cuhk03_wrong_indexes(small):
    from scipy.io import loadmat, savemat

    root = small("cuhk03")
    path = root / "cuhk03_new_protocol_config_detected.mat"
    config = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    for wrong in ([[999]], [[0]], [[1], [1]]):
        savemat(path, {**config, "query_idx": wrong})
        refused("cuhk03", root, "config_detected.mat: query_idx repeats an image or has a wrong index")


def test_skipped_samples_of_several_sets_are_in_one_list(tmp_path):
    dirs = {}
    for name in ("market1501", "cuhk_sysu"):
        dirs[name] = str(write_tree(tmp_path / name, name, SMALL[name]))
        some = last_image(tmp_path / name)
        some.with_name(f"holiday{some.suffix}").write_bytes(some.read_bytes())
    with pytest.raises(UserError, match="holiday"):
        load_reid_dataset("market1501+cuhk_sysu", data_dirs=dirs)
    listed = tmp_path / "skipped.txt"
    load_reid_dataset("market1501+cuhk_sysu", data_dirs=dirs, on_error="skip", skipped_file=listed)
    assert listed.read_text().count("holiday") == 2
