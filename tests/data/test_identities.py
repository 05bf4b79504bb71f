"""Persons and cameras of the published data sets: spellings and large numbers never merge people."""

import json
import re

import pytest
from trees import SMALL, set_images, write_tree

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

NAMED = ("market1501", "dukemtmc", "personx", "randperson", "cuhk02", "cuhk_sysu", "viper", "prid", "grid")
WITH_CAMERAS = ("market1501", "dukemtmc", "personx", "randperson", "grid")
# The camera's digits follow what comes before them.
CAMERA = {"grid": r"^([0-9]+_)([0-9]+)"}


def copy_as(image, pattern, digits):
    """A copy of the image, in whose name other digits stand where the pattern has its second group."""
    name = re.sub(pattern, lambda match: match[1] + digits(match[2]), image.name, count=1)
    assert name != image.name
    path = image.with_name(name)
    path.write_bytes(image.read_bytes())
    return path


def check_refused(name, root, tmp_path, *words):
    """The problem is one line that names all the words; skipped, the set is what it was."""
    with pytest.raises(UserError) as caught:
        load_reid_dataset(name, data_dir=root)
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    listed = tmp_path / "skipped.txt"
    dataset = load_reid_dataset(name, data_dir=root, on_error="skip", skipped_file=listed)
    assert any(word in listed.read_text() for word in words)
    return {name: sorted(zip(split["file_name"], split["person_id"], strict=True)) for name, split in dataset.items()}


@pytest.mark.parametrize(("name", "what"), [*((n, "person") for n in NAMED), *((n, "camera") for n in WITH_CAMERAS)])
def test_two_spellings_of_one_number(tmp_path, name, what):
    root = write_tree(tmp_path, name, SMALL[name])
    image = set_images(root)[-1]
    pattern = r"^(\D*)([0-9]+)" if what == "person" else CAMERA.get(name, r"(_c)([0-9]+)")
    copy = copy_as(image, pattern, lambda digits: f"00{digits}")
    left = check_refused(name, root, tmp_path, f"{what} 0", "is another spelling of", copy.name)
    # Whichever comes first stays.
    spellings = {re.search(pattern, row[0].split("/")[-1])[2] for split in left.values() for row in split}
    assert len({int(spelling) for spelling in spellings}) == len(spellings)


@pytest.mark.parametrize("name", NAMED)
def test_wrong_numbers(tmp_path, name):
    root = write_tree(tmp_path, name, SMALL[name])
    before = load_reid_dataset(name, data_dir=root)
    for digits, word in (
        ("9" * 25, "9999 has more than 18 digits"),
        ("²", "not a name like"),
        ("٣", "not a name like"),
    ):
        copy = copy_as(set_images(root)[-1], r"^(\D*)([0-9]+)", lambda _, digits=digits: digits)
        left = check_refused(name, root, tmp_path, copy.name, word)
        assert sum(map(len, left.values())) == sum(map(len, before.values()))
        copy.unlink()


def test_pairs_of_cuhk02_share_no_person(tmp_path):
    root = write_tree(tmp_path, "cuhk02", SMALL["cuhk02"])
    copy = copy_as(root / "P1/cam1/001_1.png", r"^()([0-9]+)", lambda _: "10001")  # would be person 1 of pair 2
    check_refused("cuhk02", root, tmp_path, copy.name, "person 10001 would be in another pair")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda line: re.sub("([0-9]+)$", r"0\1", line),
            ("line 2", "person 00 is another spelling of person 0 in", "line 1"),
        ),
        (lambda line: re.sub("[0-9]+$", "9" * 25, line), ("line 2", "has more than 18 digits")),
        (lambda line: re.sub("[0-9]+$", "²", line), ("line 2", "is not like")),
        (lambda line: re.sub("[0-9]+$", "-1", line), ("line 2", "is not like")),
        (lambda line: re.sub("[0-9]+$", "1E2", line), ("line 2", "is not like")),
    ],
)
def test_person_numbers_in_msmt17_lists(tmp_path, change, words):
    root = write_tree(tmp_path, "msmt17", {**SMALL["msmt17"], "query": (4, 1)})
    path = root / "list_query.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], change(lines[1]), *lines[2:]]) + "\n")
    assert len(check_refused("msmt17", root, tmp_path, *words)["query"]) == 3


def test_line_with_another_person_than_its_folder_is_a_warning(tmp_path, caplog):
    root = write_tree(tmp_path, "msmt17", SMALL["msmt17"])
    load_reid_dataset("msmt17", data_dir=root)
    assert "another person" not in caplog.text
    path = root / "list_gallery.txt"
    path.write_text(path.read_text().replace(" 1\n", " 7\n", 1))
    assert 7 in load_reid_dataset("msmt17", data_dir=root)["gallery"]["person_id"][:]
    assert "list_gallery.txt: 1 lines, first line 2, name another person than the folder" in caplog.text


def test_lists_of_other_operating_systems(tmp_path):
    """Windows line ends and backslashes, a byte-order mark, several blanks."""
    root = write_tree(tmp_path, "msmt17", SMALL["msmt17"])
    before = load_reid_dataset("msmt17", data_dir=root)
    for path in root.glob("list_*.txt"):
        text = path.read_text().replace("/", "\\").replace(" ", " \t ").replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    after = load_reid_dataset("msmt17", data_dir=root)
    assert {name: split.to_dict() for name, split in after.items()} == {
        name: split.to_dict() for name, split in before.items()
    }


@pytest.mark.parametrize("name", ["cuhk_pedes", "rstpreid"])
def test_any_number_of_captions_and_backslashes(tmp_path, name):
    root = write_tree(tmp_path, name, SMALL[name])
    path = next(root.glob("*.json"))
    key = "img_path" if name == "rstpreid" else "file_path"
    entries = json.loads(path.read_text())
    for entry, captions in zip(entries, ([], ["a man", "a man"], ["a"] * 7, ["é 人"]), strict=False):
        entry.update(captions=captions, id=2**53 + entry["id"])
    for entry in entries:
        entry[key] = ".\\" + entry[key].replace("/", "\\")
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(entries).encode())
    train = load_reid_dataset(name, data_dir=root)["train"]
    assert sorted(map(len, train["caption"][:])) == sorted([0, 2, 7, 1] + [2] * (len(train) - 4))
    assert not any("\\" in file for file in train["file_name"]) and max(train["person_id"]) > 2**53


def test_two_spellings_of_a_camera_of_rstpreid(tmp_path):
    root = write_tree(tmp_path, "rstpreid", SMALL["rstpreid"])
    image = set_images(root)[0]
    other = image.with_name(re.sub("_c([0-9]+)", r"_c0\1", image.name))
    image.rename(other)
    entry = {"split": "train", "captions": ["a"], "img_path": image.name, "id": 90}
    path = root / "data_captions.json"
    path.write_text(json.dumps([*json.loads(path.read_text().replace(f'"{image.name}"', f'"{other.name}"')), entry]))
    other.with_name(image.name).write_bytes(other.read_bytes())
    check_refused("rstpreid", root, tmp_path, "camera", "is another spelling of", "entry 8", "entry 0")
