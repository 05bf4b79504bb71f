"""Combinations of data sets: keys, cameras, protocols by name, and errors."""

import pytest
from datasets import DatasetDict

from modeling_mllmreid.data.combinations import Combination, combine, parse_combination
from modeling_mllmreid.data.contract import FEATURES, OPTIONAL_FEATURES, Sample, make_split
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError


def made(source, **splits):
    """Parts of rows (file name, person, camera)."""
    return DatasetDict(
        {split: make_split([Sample(*row) for row in rows], root="/x", source=source) for split, rows in splits.items()}
    )


def test_persons_and_cameras_of_sets_and_splits_are_distinct():
    a = made("a", train=[("1.jpg", 5, 1), ("2.jpg", 5, 2)], query=[("3.jpg", 5, 1)], gallery=[("4.jpg", 5, 1)])
    b = made("b", train=[("1.jpg", 5, 1), ("2.jpg", 0, -1)])
    train = combine({"b": b, "a": a})
    assert train.features == FEATURES and train["source"][:] == ["b", "b", "a", "a"]
    assert train["person_id"][:] == [2, 1, 0, 0]  # (a, train, 5), (b, train, 0), (b, train, 5)
    assert train["camera_id"][:] == [2, -1, 0, 1]
    whole = combine({"a": a, "b": b}, all_splits=True)
    assert whole["file_name"][:] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "1.jpg", "2.jpg"]
    # The test people's numbers are other people, of query and gallery alike; their cameras are the same cameras.
    assert whole["person_id"][:] == [1, 1, 0, 0, 3, 2] and whole["camera_id"][:] == [0, 1, 0, 0, 2, -1]
    captions = made("c", train=[("1.jpg", 1, -1)], query=[("2.jpg", 1, -1)] * 2, gallery=[("2.jpg", 1, -1)])
    assert len(combine({"c": captions}, all_splits=True)) == 2
    with pytest.raises(UserError, match="data set q: has query: it has no training split to combine"):
        combine({"q": made("q", query=[("1.jpg", 1, 1)])})


def test_protocols_by_name():
    assert parse_combination("market1501") is None and parse_combination("some/hub-name") is None
    assert parse_combination("a+b+c") == Combination(("a", "b", "c"))
    assert parse_combination("a+b:all") == Combination(("a", "b"), all_splits=True)
    assert parse_combination("a>b") == Combination(("a",), targets=("b",))
    assert parse_combination("a+b>c") == Combination(("a", "b"), targets=("c",))
    assert parse_combination("a+b:all>c") == Combination(("a", "b"), all_splits=True, targets=("c",))
    one = parse_combination("P-1")
    assert one.sources == ("market1501", "cuhk02", "cuhk03", "cuhk_sysu") and one.all_splits
    assert one.targets == ("viper", "prid", "grid", "ilids")
    two = parse_combination("P-2:msmt17")
    assert two == Combination(("market1501", "cuhk03", "cuhk_sysu"), targets=("msmt17",))
    sources = {
        "market1501": ("msmt17", "cuhk03"),
        "msmt17": ("market1501", "cuhk03"),
        "cuhk03": ("market1501", "msmt17"),
    }
    for target, others in sources.items():
        for protocol in ("P-2", "P-3"):
            assert parse_combination(f"{protocol}:{target}") == Combination(
                (*others, "cuhk_sysu"), all_splits=protocol == "P-3", targets=(target,)
            )
    with pytest.raises(UserError, match="P-2 tests on one of its own sets: did you mean P-2:market1501"):
        parse_combination("P-2:market")
    for wrong in ("P-2:qqq", "P-2:", "P-3:msmt17:all"):
        with pytest.raises(UserError, match=f"{wrong}': {wrong[:3]} tests on one of its own sets: did you mean "):
            parse_combination(wrong)
    assert parse_combination("a>b>c") == Combination(("a",), targets=("b>c",))
    with pytest.raises(UserError, match="suffix 'test' is unknown: write a\\+b or a\\+b:all"):
        parse_combination("a+b:test")


def market(root, person):
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True)
        (root / folder / f"{person:04d}_c1s1_000001_01.jpg").touch()
        (root / folder / f"{person:04d}_c2s1_000001_01.jpg").touch()
    return str(root)


def test_loading_several_data_sets(tmp_path):
    personx = tmp_path / "personx"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (personx / folder).mkdir(parents=True)
        (personx / folder / "0001_c6s2_01.jpg").touch()
    dirs = {"market1501": market(tmp_path / "market", 1), "personx": str(personx)}
    dataset = load_reid_dataset("market1501+personx", data_dirs=dirs)
    assert list(dataset) == ["train"] and dataset["train"]["person_id"][:] == [0, 0, 1]
    several = load_reid_dataset("market1501+personx:all>market1501", data_dirs=dirs)
    assert list(several) == ["train", "query", "gallery"] and set(several["query"]["source"]) == {"market1501"}
    assert set(several["train"]["source"]) == {"market1501", "personx"} and len(several["train"]) > 3
    across = load_reid_dataset("personx>market1501", data_dirs=dirs)
    assert list(across) == ["train", "query", "gallery"] and set(across["query"]["source"]) == {"market1501"}
    with pytest.raises(UserError, match=r"P-2:msmt17: data_dirs has no folder of cuhk03, cuhk_sysu: add it"):
        load_reid_dataset("P-2:msmt17", data_dirs=dirs)
    with pytest.raises(UserError, match="strict does not apply to several sets"):
        load_reid_dataset("market1501+personx", data_dirs=dirs, strict=True)
    with pytest.raises(UserError, match="data_dirs is for several sets: give data_dir"):
        load_reid_dataset("market1501", data_dirs=dirs)
    assert list(load_reid_dataset("market1501", data_dir=dirs["market1501"], data_dirs={}))


def test_combined_data_keeps_names():
    a = made("a", train=[("1.jpg", 7, 3), ("2.jpg", 4, -1)])
    b = made("b", train=[("1.jpg", 7, 3)])
    a["train"] = a["train"].add_column("person_name", ["anna", "ben"], feature=OPTIONAL_FEATURES["person_name"])
    for sets, names in (({"a": a, "b": b}, ["anna", "ben", None]), ({"b": b, "a": a}, [None, "anna", "ben"])):
        whole = combine(sets)
        assert whole["person_name"][:] == names and whole.column_names == [*FEATURES, "person_name"]
        assert whole.features == {**FEATURES, "person_name": OPTIONAL_FEATURES["person_name"]}
    assert combine({"a": a, "b": b})["person_id"][:] == [1, 0, 2]
    assert combine({"b": b}).column_names == list(FEATURES)
