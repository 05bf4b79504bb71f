"""Own data on every command: names of people in tables, pictures and reports, and people shared by splits."""

import json
import shutil

import pytest
from PIL import Image

from modeling_mllmreid.commands import data, evaluate, prepare, train
from modeling_mllmreid.data.contract import join_names
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDConfig
from modeling_mllmreid.retrieval import sheet
from modeling_mllmreid.training.seen_people import refuse_train_people
from modeling_mllmreid.utils.errors import UserError

TRAIN = ["--max_steps", "1", "--identities_per_batch", "2", "--images_per_identity", "2", "--loss_lambda", "1"]
TRAIN += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", "--report_to", "none"]


@pytest.fixture
def own(disk, tmp_path):
    """own(samples) returns the flags of a folder with a table of (person, camera, split) and an image of each."""
    images = sorted((disk.people / "bounding_box_test").glob("*.jpg"))

    def make(rows):
        root = tmp_path / "own"
        root.mkdir(exist_ok=True)
        lines = ["file_name,person_id,camera_id,split"]
        for number, (row, image) in enumerate(zip(rows, images * 3, strict=False)):
            shutil.copy(image, root / f"{number}.jpg")
            lines.append(",".join([f"{number}.jpg", *row]))
        (root / "metadata.csv").write_text("\n".join(lines))
        return ["--dataset", "table", "--data_dir", str(root)]

    return make


TESTED = [("anna", "door", "query"), ("ben", "yard", "query"), ("cleo", "-1", "query")]
TESTED += [("anna", "yard", "gallery"), ("ben", "door", "gallery"), ("cleo", "", "gallery"), ("dan", "door", "gallery")]
TRAINED = [(person, "door", "train") for person in ("eve", "fay", "gus") for _ in range(2)]


@pytest.fixture
def drawn(monkeypatch):
    """The texts that are drawn into pictures."""
    texts = []
    draw = sheet.ImageDraw.ImageDraw.text

    def remember(self, place, text, *arguments, **options):
        texts.append(text)
        return draw(self, place, text, *arguments, **options)

    monkeypatch.setattr(sheet.ImageDraw.ImageDraw, "text", remember)
    return texts


def test_evaluate_names_people(own, disk, tmp_path, capsys, drawn):
    flags = [*own([*TESTED, *TRAINED, ("anna", "door", "train")]), "--output_dir", str(tmp_path / "out")]
    evaluate.main(["--model", str(disk.ours), *flags])
    printed = capsys.readouterr().out
    assert "tested on 4 of 7 people, splits in the column split" in printed
    assert "warning: anna is in train and query: a model that was trained on this train split has seen them" in printed
    table = printed[printed.index("by query camera") :]
    assert "\ndoor " in table and "\nyard " in table and "\nunknown " in table
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert list(report["by_query_camera"]) == ["-1", "door", "yard"]
    assert {"anna, door", "ben, yard", "cleo", "anna, yard", "ben, door", "dan, door"} <= set(drawn)
    assert Image.open(tmp_path / "out/sheet.png").info["Software"] == "mllmreid"


def test_evaluate_on_folders_counts_people(disk, tmp_path, capsys):
    images = sorted((disk.people / "bounding_box_test").glob("*.jpg"))
    for number, person in enumerate(("anna", "ben", "cleo", "dan")):
        (tmp_path / "own" / person).mkdir(parents=True)
        for image in images[:2]:
            shutil.copy(image, tmp_path / "own" / person / f"{number}{image.name}")
    flags = ["--dataset", "folders", "--data_dir", str(tmp_path / "own")]
    data.main([*flags, "--output_dir", str(tmp_path / "data")])
    (tmp_path / "own/eve").mkdir()
    shutil.copy(images[0], tmp_path / "own/eve")
    for command in (
        lambda: evaluate.main(["--model", str(disk.ours), *flags, "--output_dir", str(tmp_path / "out")]),
        lambda: data.main([*flags, "--output_dir", str(tmp_path / "data")]),
        lambda: train.main(["--model", str(disk.ours), *flags, *TRAIN, "--output_dir", str(tmp_path / "run")]),
    ):
        capsys.readouterr()
        command()
        printed = capsys.readouterr().out
        assert "2 of 5 people, splits in splits.json" in printed
        assert "1 files of 1 people are in no split and not used (eve): set new_people to train" in printed


def test_evaluate_on_prepared_data_counts_people(own, disk, tmp_path, capsys):
    prepared = str(tmp_path / "prepared")
    prepare.main([*own([*TESTED, *TRAINED]), "--output", prepared])
    capsys.readouterr()
    evaluate.main(["--model", str(disk.ours), "--dataset", prepared, "--output_dir", str(tmp_path / "out")])
    assert f"tested on 4 of 7 people, splits in {prepared}\n" in capsys.readouterr().out


def test_prepare_names_the_people_in_two_splits(own, tmp_path, capsys):
    prepare.main([*own([*TESTED, *TRAINED, ("anna", "door", "train")]), "--output", str(tmp_path / "out")])
    assert "leak: anna is in train and query\n" in capsys.readouterr().out


def test_results_do_not_become_people(disk, tmp_path, monkeypatch):
    image = min((disk.people / "bounding_box_test").glob("*.jpg"))
    for person in ("anna", "ben", "cleo", "dan"):
        (tmp_path / person).mkdir()
        for number in range(2):
            shutil.copy(image, tmp_path / person / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "folders", "--data_dir", "."]
    for command in (
        lambda: data.main(flags),
        lambda: evaluate.main(["--model", str(disk.ours), *flags, "--output_dir", str(tmp_path / "anna")]),
        lambda: train.main(["--model", str(disk.ours), *flags, *TRAIN, "--output_dir", "run"]),
    ):
        with pytest.raises(UserError, match=r"output_dir .*: is inside \., where each folder is a person"):
            command()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anna", "ben", "cleo", "dan"]


def test_a_training_is_remembered_by_its_people_and_a_second_one_keeps_its_duration(disk, tmp_path, capsys):
    crops = tmp_path / "crops"
    images = sorted(disk.people.rglob("*.jpg"))
    for number, image in enumerate(images[:16]):
        (crops / f"P{number // 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, crops / f"P{number // 2}" / f"{number % 2}.jpg")
    flags = ["--dataset", "folders", "--data_dir", str(crops)]
    training = ["--model", str(disk.ours), *flags, *TRAIN[:-6], "--eval_strategy", "no", "--report_to", "none"]
    training += ["--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(tmp_path / "run")]
    evaluation = ["--model", str(tmp_path / "run"), "--compare", str(disk.ours), *flags]
    evaluation += ["--output_dir", str(tmp_path / "out")]
    train.main(training)
    record = json.loads((tmp_path / "run/run.json").read_text())
    evaluate.main(evaluation)
    assert record["seconds"] > 0 and len(record["people"]) == 8 and "was trained on" not in capsys.readouterr().out
    train.main(training)
    assert json.loads((tmp_path / "run/run.json").read_text())["seconds"] == record["seconds"]

    split, config = load_reid_dataset("folders", data_dir=crops)["train"], MllmReIDConfig(trained_on=["folders"])
    with pytest.raises(UserError, match=r"was trained on 3 of these people \(P\d, P\d and 1 more\): give other people"):
        refuse_train_people(config, split.select(range(2, 8)), tmp_path / "run", None)

    trained = sorted({name.split("/")[0] for name in json.loads((crops / "splits.json").read_text())["train"]})
    (crops / "splits.json").unlink()
    (crops / trained[0]).rename(crops / "another name")
    capsys.readouterr()
    evaluate.main([*evaluation, "--split_seed", "3", "--test_share", "0.7"])
    drawn = json.loads((crops / "splits.json").read_text())
    tested = {name.split("/")[0] for name in drawn["query"]} & {"another name", *trained[1:]}
    assert "another name" in tested and len(tested) > 2
    people = f"{len(tested)} people of this test ({join_names(tested)})"
    warning = f"warning: {tmp_path / 'run'}: was trained on {people}: its result is not that of unseen people\n"
    assert warning in capsys.readouterr().out


def test_data_names_people(own, tmp_path, capsys, drawn):
    flags = own([*TESTED, *TRAINED, ("anna", "door", "train"), ("ben", "door", "train")])
    data.main([*flags, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "leak: anna, ben are in train and query\nleak: anna, ben are in train and gallery" in printed
    report = json.loads((tmp_path / "out/data.json").read_text())
    assert report["parts"]["gallery"]["cameras"] == {"door": 2, "yard": 1}
    assert report["shared_people"] == {"train and query": ["anna", "ben"], "train and gallery": ["anna", "ben"]}
    texts = " ".join(drawn)
    assert "gallery, anna" in texts and "door" in drawn and "person 0" not in texts and "cam 0" not in texts


def test_train_refuses_people_of_the_test_splits(own, disk, tmp_path):
    rows = [
        *TESTED,
        *TRAINED,
        ("anna", "door", "train"),
        ("anna", "yard", "train"),
        *[("eve", c, "val") for c in ("door", "yard")],
    ]
    flags = ["--model", str(disk.ours), *own(rows), *TRAIN, "--output_dir", str(tmp_path / "run")]
    shared = "leak: eve is in train and val; anna is in train and query; anna is in train and gallery: take them out"
    with pytest.raises(UserError, match=shared):
        train.main(flags)
    assert not (tmp_path / "run").exists()
    train.main([*flags, "--allow_overlap", "true"])
    written = json.loads((tmp_path / "run/config.json").read_text())["overlap"]
    assert written == [f"1 person is in train and {split}" for split in ("gallery", "query", "val")]
