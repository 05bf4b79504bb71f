"""Every set by trees of its genuine names, doubled suffixes and litter included: its images are counted as published.

At full size the strict check passes, and one image less fails it. Of the large sets Market-1501 is in the
fast suite.
"""

import re

import pytest
from trees import PUBLISHED, SMALL, set_images, write_tree

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

# Tens of thousands of files each.
SLOW = ("dukemtmc", "occluded_duke", "cuhk03", "cuhk_pedes", "icfg_pedes", "rstpreid", "cuhk_sysu", "msmt17")
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PUBLISHED]
PARTS = {
    "market1501": {"train": 12_936, "query": 3_368, "gallery": 15_913},
    "dukemtmc": {"train": 16_522, "query": 2_228, "gallery": 17_661},
    "occluded_duke": {"train": 15_618, "query": 2_210, "gallery": 17_661},
    "msmt17": {"train": 32_621, "query": 11_659, "gallery": 82_161},
    "cuhk03": {"train": 7_365, "query": 1_400, "gallery": 5_332},
    "cuhk_pedes": {"train": 34_054, "val": 3_078, "query": 6_156, "gallery": 3_074},
    "icfg_pedes": {"train": 34_674, "query": 19_848, "gallery": 19_848},
    "rstpreid": {"train": 18_505, "val": 1_000, "query": 2_000, "gallery": 1_000},
    "cuhk02": {"train": 7_264},
    "cuhk_sysu": {"train": 34_574},
    "viper": {"train": 632, "query": 316, "gallery": 316},
    "prid": {"train": 200, "query": 100, "gallery": 649},
    "grid": {"train": 250, "query": 125, "gallery": 900},
    "ilids": {"train": 236, "query": 60, "gallery": 60},
}
SMALL_PARTS = {
    "market1501": {"train": 8, "query": 4, "gallery": 10},
    "dukemtmc": {"train": 8, "query": 4, "gallery": 8},
    "occluded_duke": {"train": 8, "query": 4, "gallery": 8},
    "personx": {"train": 8, "query": 4, "gallery": 8},
    "randperson": {"train": 8},
    "msmt17": {"train": 10, "query": 4, "gallery": 8},
    "cuhk03": {"train": 8, "query": 4, "gallery": 8},
    "cuhk_pedes": {"train": 8, "val": 2, "query": 8, "gallery": 4},
    "icfg_pedes": {"train": 8, "query": 4, "gallery": 4},
    "rstpreid": {"train": 8, "val": 2, "query": 8, "gallery": 4},
    "cuhk02": {"train": 40},
    "cuhk_sysu": {"train": 8},
    "viper": {"train": 4, "query": 2, "gallery": 2},
    "prid": {"train": 200, "query": 100, "gallery": 130},
    "grid": {"train": 8, "query": 4, "gallery": 7},
    "ilids": {"train": 8, "query": 2, "gallery": 2},
}


def size(dataset):
    return {name: len(split) for name, split in dataset.items()}


def end_names(root, ending):
    """Gives the images of a set other endings, on disk and in its lists."""
    texts = {path: path.read_text() for pattern in ("*.json", "list_*.txt") for path in root.glob(pattern)}
    for path in set_images(root):
        path.rename(path.with_name(path.stem + ending(path.suffix)))
        for file, text in texts.items():
            texts[file] = re.sub(rf"(?<=[/\"]){re.escape(path.name)}(?=[\" ])", path.stem + ending(path.suffix), text)
    for file, text in texts.items():
        file.write_text(text)


@pytest.mark.parametrize("ending", [str, str.upper, lambda suffix: 2 * suffix], ids=["as it is", "upper", "double"])
@pytest.mark.parametrize("name", SMALL_PARTS)
def test_small_trees(tmp_path, name, ending):
    root = write_tree(tmp_path, name, SMALL[name])
    if ending is not str and name != "cuhk03":  # whose names are written at extraction
        end_names(root, ending)
    dataset = load_reid_dataset(name, data_dir=root)
    assert size(dataset) == SMALL_PARTS[name]
    assert not [
        name for split in dataset.values() for name in split["file_name"] if "copies" in name or "holiday" in name
    ]


@pytest.mark.parametrize("name", CASES)
def test_full_size(tmp_path, name, caplog):
    root = write_tree(tmp_path, name)
    dataset = load_reid_dataset(name, data_dir=root, strict=True)
    assert size(dataset) == PARTS[name]
    doubled = {name: sum(file.endswith(".jpg.jpg") for file in split["file_name"]) for name, split in dataset.items()}
    assert doubled == dict.fromkeys(dataset, 0) | ({"query": 6, "gallery": 16} if name == "market1501" else {})
    assert not [record for record in caplog.records if "not the published" in record.getMessage()]
    first = max(dataset, key=lambda split: len(dataset[split]))
    (root / ("imgs" if (root / "imgs").is_dir() else ".") / dataset[first]["file_name"][0]).unlink()
    with pytest.raises(UserError, match="not the published|there is no image|no such image"):
        load_reid_dataset(name, data_dir=root, strict=True)
