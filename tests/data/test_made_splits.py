"""splits.json: what it records, what it leaves out, what contradicts it; and people that two splits share."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from datasets import Value
from PIL import Image

from modeling_mllmreid.data import load_reid_dataset, made_splits
from modeling_mllmreid.data.columns import Row, make_split
from modeling_mllmreid.data.leaks import shared_people, shared_people_lines
from modeling_mllmreid.errors import UserError

PEOPLE = ["anna", "ben", "cleo", "dan", "eve", "fay", "gus", "hal", "ida", "jan"]


def add(root, *people, images=2):
    for person in people:
        (root / person).mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (4, 8)).save(root / person / f"{number}.png")


@pytest.fixture
def root(tmp_path):
    add(tmp_path / "data", *PEOPLE)
    return tmp_path / "data"


def load(root, **options):
    """The data set and its notes."""
    notes = []
    return load_reid_dataset("folders", data_dir=root, notes=notes, **options), notes


def rewrite(root, **fields):
    content = {**json.loads((root / "splits.json").read_text()), **fields}
    (root / "splits.json").write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_what_was_added_later_is_said(root, caplog):
    first, notes = load(root)
    assert notes == ["tested on 5 of 10 people, parts in splits.json"] and not caplog.text
    add(root, "kim", "lea", images=3)
    Image.new("RGB", (4, 8)).save(root / "anna/9.png")
    again, notes = load(root)
    assert {split: part["file_name"][:] for split, part in again.items()} == {
        split: part["file_name"][:] for split, part in first.items()
    }
    assert notes[0] == "tested on 5 of 12 people, parts in splits.json"
    left = (
        "splits.json: 7 files of 3 people are in no part and not used (anna, kim and 1 more): remove the file to draw"
    )
    assert left in notes[1] and left in caplog.text and "or give another splits_file" in notes[1]
    (root / "splits.json").unlink()
    whole, notes = load(root)
    assert sum(map(len, whole.values())) == 27 and len(notes) == 1


def test_two_runs_that_draw_at_once_do_not_both_go_on(root, monkeypatch):
    draw = made_splits.query_gallery_parts

    def slowly(*arguments, **options):
        time.sleep(0.5)
        return draw(*arguments, **options)

    monkeypatch.setattr(made_splits, "query_gallery_parts", slowly)

    def attempt(seed):
        try:
            return load(root, split_seed=seed)[0]["train"]["file_name"][:]
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(attempt, [1, 2]))
    written = json.loads((root / "splits.json").read_text())
    assert written["train"] in results
    assert sum("splits.json: was drawn with split_seed" in str(result) for result in results) == 1


def test_nothing_is_left_where_splits_cannot_be_drawn(root, tmp_path):
    with pytest.raises(UserError, match="too few for two to train on"):
        load(root, splits_file=tmp_path / "new" / "below" / "splits.json", test_share=0.99)
    assert not (tmp_path / "new").exists()


def test_options_that_contradict_the_file(root):
    load(root, test_share=0.3, split_seed=4)
    before = (root / "splits.json").read_bytes()
    assert json.loads(before)["test_share"] == 0.3 and json.loads(before)["split_seed"] == 4
    load(root)
    load(root, test_share=0.3, split_seed=4)
    with pytest.raises(
        UserError, match="was drawn with test_share 0.3, not 0.5: leave it out, or remove the file to draw"
    ):
        load(root, test_share=0.5)
    with pytest.raises(UserError, match="was drawn with split_seed 4, not 0: leave it out, or remove the file to draw"):
        load(root, split_seed=0)
    rewrite(root, test_share=None, split_seed=None)  # as it was written before, or by hand
    load(root)
    for option in ({"test_share": 0.3}, {"split_seed": 4}):
        (name,) = option
        with pytest.raises(
            UserError, match=f"splits.json: does not say its {name}, so that .* cannot be checked: leave it out"
        ):
            load(root, **option)
    assert load(root, splits_file=root.parent / "other.json", test_share=0.2)[1] == [
        "tested on 2 of 10 people, parts in other.json"
    ]


def test_options_that_do_not_apply_are_refused(root, tmp_path):
    add(tmp_path / "parts/train", "a", "b")
    add(tmp_path / "parts/query", "c")
    add(tmp_path / "parts/gallery", "c")
    assert load(tmp_path / "parts")[1] == ["tested on 1 of 3 people, parts in the folders"]
    for option in ({"test_share": 0.5}, {"split_seed": 0}, {"splits_file": "x.json"}):
        (name,) = option
        with pytest.raises(UserError, match=f"has splits of its own, {name} does not apply: leave it out"):
            load(tmp_path / "parts", **option)
        with pytest.raises(UserError, match=f"saved data set, {name} does not apply"):
            load_reid_dataset(root, **option)
        with pytest.raises(UserError, match=f"is read by its columns, {name} does not apply"):
            load_reid_dataset(root, columns={}, **option)
        with pytest.raises(UserError, match=f"{name} does not apply to several sets"):
            load_reid_dataset("folders+table", data_dirs={"folders": str(root), "table": "x"}, **option)
        with pytest.raises(UserError, match=f"is of the Hub, {name} does not apply"):
            load_reid_dataset("somebody/people", **option)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": ["anna/0.png"]}, "part 'test' is unknown: name the parts train, val, query, gallery"),
        ({"query": ["anna/0.png"], "gallery": ["anna/0.png"]}, "names 'anna/0.png' more than once"),
        ({"query": ["anna/0.png", "anna/0.png"]}, "names 'anna/0.png' more than once"),
        (
            {"train": ["anna/0.png", "ben/0.png"], "query": ["anna/1.png"], "gallery": ["ben/1.png"], "val": []},
            "anna is in train and query; ben is in train and gallery: remove the file to draw anew",
        ),
        ({"train": ["anna/0.png"], "val": ["anna/1.png"], "query": [], "gallery": []}, "anna is in train and val"),
        ({"train": None}, "field train: field required"),
        ({"train": "anna/0.png"}, "field train: "),
        ({"train": [5]}, r"field train\[0\]: "),
        ({"test_share": "half"}, "field test_share: "),
        ({"query": ["nobody/0.png"]}, "names 'nobody/0.png', which is not in the data: remove the file to draw anew"),
    ],
)
def test_a_file_that_does_not_fit(root, change, message):
    load(root)
    rewrite(root, **change)
    before = (root / "splits.json").read_bytes()
    with pytest.raises(UserError, match=f"splits.json: {message}") as caught:
        load(root)
    assert "\n" not in str(caught.value) and (root / "splits.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"train": NaN}', b'{"train": ["a"'])
def test_garbage_is_named_and_left_alone(root, content):
    (root / "splits.json").write_bytes(content)
    with pytest.raises(UserError, match="splits.json: ") as caught:
        load(root)
    assert "\n" not in str(caught.value) and (root / "splits.json").read_bytes() == content


def test_the_list_of_what_was_skipped_replaces_no_other_file(root, tmp_path):
    (root / "anna/broken.png").write_bytes(b"x")
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    with pytest.raises(UserError, match="notes.txt: exists and was not written by this program"):
        load(root, on_error="skip", skipped_file=other)
    assert other.read_text() == "my notes\n" and not (root / "splits.json").exists()
    for _ in range(2):
        load(root, on_error="skip", skipped_file=tmp_path / "skipped.txt")
    assert "anna/broken.png" in (tmp_path / "skipped.txt").read_text()


def split(people, source="own", named=True):
    rows = [Row(f"{number}.jpg", number, 1) for number, _ in people]
    part = make_split(rows, root="/x", source=source)
    names = [name for _, name in people]
    return part.add_column("person_name", names, feature=Value("string")) if named else part


def test_people_that_train_shares():
    train = split([(0, "anna"), (1, "ben"), (2, "cleo"), (3, "dan")])
    numbered_anew = split([(7, "dan"), (8, "cleo"), (9, "anna")])
    dataset = {"train": train, "val": split([(3, "eve")]), "query": numbered_anew, "gallery": split([(0, "anna")])}
    assert shared_people(dataset) == {"train and query": ["anna", "cleo", "dan"], "train and gallery": ["anna"]}
    assert shared_people_lines(dataset) == [
        "anna, cleo and 1 more are in train and query",
        "anna is in train and gallery",
    ]
    assert shared_people({"query": numbered_anew, "gallery": train}) == {}
    # Names of two sets, and numbers where they mean nothing, are no people in common.
    assert shared_people({"train": train, "query": split([(0, "anna")], source="other")}) == {}
    plain = [(5, None)]
    for source, found in (("market1501", ["5"]), ("own", ["5"]), ("msmt17", []), ("rstpreid", [])):
        both = {"train": split(plain, source, named=False), "query": split(plain, source, named=False)}
        assert shared_people(both).get("train and query", []) == found
    one = {"train": split(plain, "a", named=False), "query": split(plain, "b", named=False)}
    assert shared_people(one) == {}
