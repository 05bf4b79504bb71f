"""DukeMTMC-reID, Occluded-Duke, PersonX, RandPerson and the distractors of Market-1501."""

import pytest
from trees import SMALL, market_layout, write_tree

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError


@pytest.mark.parametrize("name", ["dukemtmc", "occluded_duke"])
def test_withdrawn_set_is_a_warning(tmp_path, caplog, name):
    dataset = load_reid_dataset(name, data_dir=write_tree(tmp_path, name, SMALL[name]))
    assert set(dataset["gallery"]["camera_id"]) == set(range(1, 9)) and set(dataset["train"]["source"]) == {name}
    assert "2019" in caplog.text and "consider another data set" in caplog.text


def test_additional_distractors_of_market1501(tmp_path, caplog):
    root = write_tree(tmp_path, "market1501", SMALL["market1501"])
    alone = load_reid_dataset("market1501", data_dir=root)
    assert alone["gallery"]["person_id"][:].count(0) == 2
    market_layout("{person:04d}_c{camera}s1_{number:06d}_01.jpg", {"train": "images"})(root, {"train": (300, 200)})
    more = load_reid_dataset("market1501", data_dir=root, distractors="images")
    assert len(more["gallery"]) == len(alone["gallery"]) + 300 and more["gallery"]["person_id"][:].count(0) == 302
    with pytest.raises(UserError, match="nowhere: no such folder: give the name of the distractors' folder"):
        load_reid_dataset("market1501", data_dir=root, distractors="nowhere")
    with pytest.raises(UserError, match="'../x' is not inside the data folder"):
        load_reid_dataset("market1501", data_dir=root, distractors="../x")


def test_computer_generated_sets(tmp_path):
    (tmp_path / "randperson_subset").mkdir()
    (tmp_path / "randperson_subset" / "000012_s03_c07_f000228.jpg").touch()
    train = load_reid_dataset("randperson", data_dir=tmp_path)["train"]
    assert (train["person_id"][:], train["camera_id"][:]) == ([12], [7])
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "x" / folder).mkdir(parents=True)
        (tmp_path / "x" / folder / "0001_c6s2_01.jpg").touch()
    assert load_reid_dataset("personx", data_dir=tmp_path / "x")["query"]["camera_id"][:] == [6]
    with pytest.raises(UserError, match="0001_c6s2_01.jpg: not a name like 0005_c2_f0046985.jpg"):
        load_reid_dataset("dukemtmc", data_dir=tmp_path / "x")
    with pytest.raises(UserError, match="on_error: unknown 'ignore': use one of stop, skip"):
        load_reid_dataset("randperson", data_dir=tmp_path, on_error="ignore")
