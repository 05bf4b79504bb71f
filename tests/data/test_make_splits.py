"""splits.json: its content, contradictions with the data, and people that two splits share."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from PIL import Image

from modeling_mllmreid.data import splits
from modeling_mllmreid.data.contract import Problems, Sample, make_split
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.splits import make_splits, split_query_gallery
from modeling_mllmreid.utils.errors import UserError

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


def test_images_added_later_are_noted(root, caplog):
    first, notes = load(root)
    assert notes == ["tested on 5 of 10 people, splits in splits.json"] and not caplog.text
    add(root, "kim", "lea", images=3)
    Image.new("RGB", (4, 8)).save(root / first["train"]["person_name"][0] / "9.png")
    Image.new("RGB", (4, 8)).save(root / (tested := first["query"]["person_name"][0]) / "9.png")
    again, notes = load(root)
    assert {name: split["file_name"][:] for name, split in again.items()} == {
        name: split["file_name"][:] for name, split in first.items()
    }
    assert notes[0] == "tested on 5 of 12 people, splits in splits.json"
    left = "splits.json: 7 files of 3 people are in no split and not used ("
    assert f"splits.json: 1 new files of people of the test are not used ({tested})" in notes[2]
    assert left in notes[1] and not caplog.text
    load_reid_dataset("folders", data_dir=root)  # nobody prints the notes
    assert left in caplog.text
    (root / "splits.json").unlink()
    whole, notes = load(root)
    assert sum(map(len, whole.values())) == 28 and len(notes) == 1


def test_new_people_are_trained_on_and_the_test_stays(root):
    first, _ = load(root)
    tested, trained = first["query"]["person_name"][0], first["train"]["person_name"][0]
    add(root, "kim", "lea", images=3)
    for person in (tested, trained):
        Image.new("RGB", (4, 8)).save(root / person / "9.png")
    gone = first["gallery"]["file_name"][-1]
    content = (root / gone).read_bytes()
    (root / gone).unlink()
    at_once, _ = load(root, new_people="train")
    (root / gone).write_bytes(content)
    more, notes = load(root, new_people="train")
    assert at_once["train"]["file_name"][:] == more["train"]["file_name"][:]
    new = {*(f"{name}/{number}.png" for name in ("kim", "lea") for number in range(3)), f"{trained}/9.png"}
    assert set(more["train"]["file_name"]) == {*first["train"]["file_name"], *new}
    assert all(more[name]["file_name"][:] == first[name]["file_name"][:] for name in ("query", "gallery"))
    assert f"1 new files of people of the test are not used ({tested})" in notes[1]
    written = json.loads((root / "splits.json").read_text())
    assert new < set(written["train"]) and (written["test_share"], written["split_seed"]) == (0.5, 0)
    again, _ = load(root)
    assert {name: split["file_name"][:] for name, split in again.items()} == {
        name: split["file_name"][:] for name, split in more.items()
    }


def test_two_concurrent_runs_use_the_same_splits(root, monkeypatch):
    draw = splits.split_query_gallery

    def slowly(*arguments, **options):
        time.sleep(0.5)
        return draw(*arguments, **options)

    monkeypatch.setattr(splits, "split_query_gallery", slowly)

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


def test_failed_draw_leaves_no_file(root, tmp_path):
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
            UserError, match=f"splits.json: does not record its {name}, so that .* cannot be checked: leave it out"
        ):
            load(root, **option)
    assert load(root, splits_file=root.parent / "other.json", test_share=0.2)[1] == [
        "tested on 2 of 10 people, splits in other.json"
    ]


def test_options_that_do_not_apply_are_refused(root, tmp_path):
    add(tmp_path / "splits/train", "a", "b")
    add(tmp_path / "splits/query", "c")
    add(tmp_path / "splits/gallery", "c")
    assert load(tmp_path / "splits")[1] == ["tested on 1 of 3 people, splits in the folders"]
    for option in ({"test_share": 0.5}, {"split_seed": 0}, {"splits_file": "x.json"}):
        (name,) = option
        with pytest.raises(UserError, match=f"has splits of its own, {name} does not apply: leave it out"):
            load(tmp_path / "splits", **option)
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
        ({"test": ["anna/0.png"]}, "split 'test' is unknown: name the splits train, val, query, gallery"),
        ({"query": ["anna/0.png"], "gallery": ["anna/0.png"]}, "names 'anna/0.png' more than once"),
        ({"query": ["anna/0.png", "anna/0.png"]}, "names 'anna/0.png' more than once"),
        (
            {"train": ["anna/0.png", "ben/0.png"], "query": ["anna/1.png"], "gallery": ["ben/1.png"], "val": []},
            "anna is in train and query; ben is in train and gallery: remove the file to draw the splits again",
        ),
        ({"train": ["anna/0.png"], "val": ["anna/1.png"], "query": [], "gallery": []}, "anna is in train and val"),
        ({"train": None}, "field train: field required"),
        ({"train": "anna/0.png"}, "field train: "),
        ({"train": [5]}, r"field train\[0\]: "),
        ({"test_share": "half"}, "field test_share: "),
        (
            {"query": ["nobody/0.png"]},
            r"1 of its files are not in the data \(nobody/0.png\), and nothing of query is left: give the folder that",
        ),
    ],
)
def test_file_that_contradicts_the_data(root, change, message):
    load(root)
    rewrite(root, **change)
    before = (root / "splits.json").read_bytes()
    with pytest.raises(UserError, match=f"splits.json: {message}") as caught:
        load(root)
    assert "\n" not in str(caught.value) and (root / "splits.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"train": NaN}', b'{"train": ["a"'])
def test_invalid_file_is_not_replaced(root, content):
    (root / "splits.json").write_bytes(content)
    with pytest.raises(UserError, match="splits.json: ") as caught:
        load(root)
    assert "\n" not in str(caught.value) and (root / "splits.json").read_bytes() == content


def test_skipped_file_replaces_no_other_file(root, tmp_path):
    (root / "anna/broken.png").write_bytes(b"x")
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    with pytest.raises(UserError, match="notes.txt: exists and was not written by this program"):
        load(root, on_error="skip", skipped_file=other)
    assert other.read_text() == "my notes\n" and not (root / "splits.json").exists()
    for _ in range(2):
        load(root, on_error="skip", skipped_file=tmp_path / "skipped.txt")
    assert "anna/broken.png" in (tmp_path / "skipped.txt").read_text()


def images(people=8, number=5, turned=False):
    """Images of people whose cameras are unknown."""
    rows = [Sample(f"{person}/{i}.jpg", person, -1) for person in range(people) for i in range(number)]
    return make_split(rows[::-1] if turned else rows, root="/x", source="own")


def drawn(whole, path, **options):
    return {name: sorted(split["file_name"][:]) for name, split in make_splits(whole, path, **options).items()}


def test_the_seed_draws_the_people_and_the_queries(tmp_path):
    splits = {seed: drawn(images(), tmp_path / f"{seed}.json", seed=seed) for seed in range(5)}
    assert drawn(images(), tmp_path / "none.json") == splits[0] == drawn(images(turned=True), tmp_path / "turned.json")
    assert drawn(images(), tmp_path / "again.json", seed=3, test_share=0.5) == splits[3]
    assert len({tuple(split["train"]) for split in splits.values()}) > 3
    assert len({tuple(name[2:] for name in split["query"]) for split in splits.values()}) == 5
    for seed, split in splits.items():
        tested = {int(name[0]) for name in split["gallery"]}
        whole = images()
        whole = whole.select([row for row, person in enumerate(whole["person_id"]) if person in tested])
        assert sorted(split_query_gallery(whole, seed=seed)[0]["file_name"]) == split["query"]


def test_share_counts_people(tmp_path):
    for share, tested in ((0.125, 1), (0.5, 4), (0.75, 6)):
        splits = drawn(images(), tmp_path / f"{share}.json", test_share=share)
        assert len({name[0] for name in splits["gallery"]}) == len(splits["query"]) == tested
        assert len({name[0] for name in splits["train"]}) == 8 - tested
    for share in (0, 1, 1.5, -0.5, float("nan")):
        with pytest.raises(UserError, match=f"test_share: {share} is not a share: use a number between 0 and 1"):
            make_splits(images(), tmp_path / "s.json", test_share=share)
    for people, share in ((2, 0.5), (8, 0.05), (8, 0.9)):
        with pytest.raises(UserError, match=f"{people} people, test_share {share}: too few for two to train on"):
            make_splits(images(people), tmp_path / "s.json", test_share=share)
    with pytest.raises(UserError, match="split_seed: -1 is not a seed: use a whole number from 0"):
        make_splits(images(), tmp_path / "s.json", seed=-1)


def test_file_is_readable_json(tmp_path):
    rows = [Sample(f"zoë/{person}.{i}.jpg", person, -1) for person in range(4) for i in range(2)]
    splits = drawn(make_split(rows, root="/x", source="own"), tmp_path / "s.json", seed=2)
    text = (tmp_path / "s.json").read_bytes().decode("utf-8")
    assert text.startswith('{\n "test_share": 0.5,\n "split_seed": 2,\n "train": [\n  "zoë/') and text.endswith("\n}\n")
    content = json.loads(text)
    assert {name: sorted(content[name]) for name in splits} == splits


def test_splits_of_a_concurrent_run_are_used(tmp_path, monkeypatch):
    path = tmp_path / "s.json"

    @contextmanager
    def overtaken(where):
        written = {"train": ["0/0.jpg", "1/0.jpg"], "query": ["2/0.jpg"], "gallery": ["2/1.jpg", "gone.jpg"]}
        where.write_text(json.dumps({"test_share": 0.5, "split_seed": 9, **written}))
        yield

    monkeypatch.setattr(splits, "_split_lock", overtaken)
    problems = Problems(on_error="skip")
    assert drawn(images(), path, problems=problems) == {
        "train": ["0/0.jpg", "1/0.jpg"],
        "query": ["2/0.jpg"],
        "gallery": ["2/1.jpg"],
    }
    assert "tested on 1 of 8 people, splits in s.json" in problems.notes
    path.unlink()
    with pytest.raises(UserError, match="was drawn with split_seed 9, not 3: leave it out"):
        make_splits(images(), path, seed=3)


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_test_people_of_query_and_gallery_are_counted(tmp_path, split):
    (tmp_path / "s.json").write_text(
        json.dumps({"train": ["0/0.jpg"], "query": [], "gallery": [], split: ["1/0.jpg", "2/0.jpg"]})
    )
    problems = Problems()
    make_splits(images(), tmp_path / "s.json", problems=problems)
    assert problems.notes[0] == "tested on 2 of 8 people, splits in s.json"


def test_broken_file(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("{")
    with pytest.raises(UserError, match="s.json.*: remove the file to draw .* or give another splits_file"):
        make_splits(images(), path)
    path.write_text(json.dumps({"train": ["0/0.jpg", "1/0.jpg"], "query": ["2/0.jpg", "0/0.jpg"], "gallery": []}))
    with pytest.raises(UserError, match="names '0/0.jpg' more than once: remove the file to draw the splits again"):
        make_splits(images(), path)
