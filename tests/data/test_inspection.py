"""Counts, captions, copies and broken images of a data set, and its contact sheet."""

import numpy as np
import pytest
from datasets import DatasetDict
from PIL import Image

from modeling_mllmreid.commands.data import format_group
from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.data.inspection import contact_sheet, describe, examine_images, shared_persons


@pytest.fixture
def dataset(tmp_path):
    """Train: person 1 twice, person 2 once, two captions; query and gallery share persons, one file and its copy."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "e"):
        Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    samples = {
        "train": [Sample("a.png", 1, 2, ("A man, a RED hat.", "tall")), Sample("b.png", 1, 2), Sample("c.png", 2, -1)],
        "query": [Sample("d.png", 1, 1), Sample("e.png", 9, 1)],
        "gallery": [Sample("copy.png", 9, 2), Sample("d.png", 1, 2)],
    }
    return DatasetDict({split: make_split(rows, root=tmp_path, source="t") for split, rows in samples.items()})


def test_counts(dataset):
    train = describe(dataset["train"])
    assert (train["images"], train["persons"], train["cameras"], train["images_of_unknown_camera"]) == (
        3,
        2,
        {"2": 2},
        1,
    )
    assert train["images_of_a_person"] == {"min": 1, "median": 1.5, "mean": 1.5, "max": 2}
    assert train["persons_by_their_images"] == {"1": 1, "2": 1}
    assert (train["captions"], train["vocabulary"]) == (2, 5)  # a, man, red, hat, tall
    assert train["words_of_a_caption"] == {"min": 1, "median": 3.0, "mean": 3.0, "max": 5}
    assert describe(dataset["query"])["words_of_a_caption"] is None
    assert shared_persons(dataset) == {"train and query": 1, "train and gallery": 1}


def test_copies_and_broken_images(dataset, tmp_path):
    assert examine_images(dataset) == ([], [["gallery/copy.png", "train/a.png"]])  # d.png is one file of two splits
    path = tmp_path / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "c.png").unlink()
    broken, copies = examine_images(dataset)
    assert len(broken) == 2 and "b.png: broken image" in broken[0] and "c.png: no such image" in broken[1]
    assert len(copies) == 1
    assert format_group(["a", "b"]) == "a = b" and format_group([*"abcde"]) == "a = b = c and 2 more"


def test_contact_sheet(dataset, tmp_path):
    contact_sheet(tmp_path / "sheet.png", dataset, people=2, images=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height > 6 * 144 and sheet.width > 2 * 72
    assert len(sheet.convert("RGB").getcolors(2**20)) > 500  # the noise of the images is on it
