"""Every set at its full size, by trees of its genuine names: the strict check passes, and one image less fails it."""

import pytest
from trees import PUBLISHED, write_tree

from modeling_mllmreid.data import load_reid_dataset
from modeling_mllmreid.errors import UserError

# Tens of thousands of files each: the small sets stand for their readers in the fast suite.
SLOW = ("cuhk_pedes", "icfg_pedes", "rstpreid", "cuhk_sysu", "msmt17")
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


@pytest.mark.parametrize("name", CASES)
def test_full_size(tmp_path, name, caplog):
    root = write_tree(tmp_path, name)
    dataset = load_reid_dataset(name, data_dir=root, strict=True)
    assert {split: len(part) for split, part in dataset.items()} == PARTS[name]
    assert not [record for record in caplog.records if "not the published" in record.getMessage()]
    first = max(dataset, key=lambda split: len(dataset[split]))
    (root / ("imgs" if (root / "imgs").is_dir() else ".") / dataset[first]["file_name"][0]).unlink()
    with pytest.raises(UserError, match="not the published|there is no image|no such image"):
        load_reid_dataset(name, data_dir=root, strict=True)
