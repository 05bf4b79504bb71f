"""The models that come with the package: every command finds them by name, and their files are small and agree."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import ROOT, code_blocks
from encoders import write_encoder
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_mllmreid import MllmReIDVisionModel, MllmReIDVisionProcessor, load_embeddings, load_reid_dataset
from modeling_mllmreid.commands import embed, evaluate, export, push, search, train
from modeling_mllmreid.evaluation.threshold import load_thresholds, save_thresholds
from modeling_mllmreid.hub.pack import add_calibration, pack
from modeling_mllmreid.model import shipped_models
from modeling_mllmreid.retrieval.embeddings import weights_digest
from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.utils.errors import UserError

NAME = "pedestrians-small"
FOLDER = shipped_models.PRETRAINED / NAME
PAGE = ROOT / "docs/pedestrians_small.md"


@pytest.fixture(scope="module")
def packed(tmp_path_factory, disk):
    """A folder like `pretrained/`, with a tiny model that was trained, and its checkpoint."""
    root = tmp_path_factory.mktemp("shipped")
    flags = f"--model {write_encoder(root / 'encoder', 'reid_resnet')} --dataset market1501 --data_dir {disk.people}"
    flags += f" --height 32 --width 16 --output_dir {root / 'run'} --max_steps 1 --learning_rate 0.01 --use_cpu true"
    flags += " --identities_per_batch 2 --images_per_identity 2 --eval_strategy no --disable_tqdm true"
    train.main([*flags.split(), "--licence", "apache-2.0"])
    (root / "pretrained" / NAME).mkdir(parents=True)
    (root / "pretrained" / NAME / "README.md").write_text("a card")
    pack(root / "run", root / "pretrained" / NAME)
    return root


@pytest.fixture
def shipped(packed, monkeypatch, tmp_path):
    """The folder of the tiny model, which now comes with the package; the working directory is empty."""
    monkeypatch.setattr(shipped_models, "PRETRAINED", packed / "pretrained")
    monkeypatch.chdir(tmp_path)
    return packed / "pretrained" / NAME


def test_every_command_takes_the_name(shipped, disk, capsys):
    query = disk.people / "query"
    embed.main(["--model", NAME, "--images", str(query), "--output", "embeddings"])
    metadata = load_embeddings("embeddings").metadata
    assert (metadata["model"], metadata["height"]) == (NAME, 32)
    search.main(["--query", str(next(query.iterdir())), "--embeddings", "embeddings"])
    assert "  0.0" in capsys.readouterr().out

    data = ["--dataset", "market1501", "--data_dir", str(disk.people)]
    evaluate.main(["--model", NAME, *data, "--output_dir", "report"])
    report = json.loads(Path("report/metrics.json").read_text())
    assert (report["model"], report["weights"]) == (NAME, weights_digest(shipped))
    export.main(["--model", NAME, "--output", "export"])
    assert Path("export/modules.json").is_file() and Path("export/sentence_transformers_mllmreid.py").is_file()
    batch = "--identities_per_batch 2 --images_per_identity 2 --max_steps 1 --eval_strategy no --use_cpu true"
    train.main(["--model", NAME, *data, *batch.split(), "--disable_tqdm", "true", "--output_dir", "run"])
    assert json.loads(Path("run/run.json").read_text())["base_model"] == NAME
    expected = load_file(shipped / "model.safetensors")["tower.conv.weight"].float()
    assert torch.equal(load_file("export/model.safetensors")["tower.conv.weight"], expected)


def test_the_onnx_file_of_a_name_gives_its_embeddings(shipped, disk):
    pytest.importorskip("onnxruntime")
    path = shipped_models.shipped_onnx(shipped_models.shipped_folder(NAME))
    assert path == shipped / "model.onnx" and shipped_models.shipped_onnx(disk.ours) is None
    for name, output in ((NAME, "weights"), (str(path), "onnx")):
        embed.main(["--model", name, "--images", str(disk.people / "query"), "--output", output])
    expected, computed = (load_embeddings(folder).features for folder in ("weights", "onnx"))
    np.testing.assert_allclose(computed, expected, atol=1e-4)


def test_python_takes_the_name(shipped, disk, capsys):
    model, processor = (kind.from_pretrained(NAME) for kind in (MllmReIDVisionModel, MllmReIDVisionProcessor))
    assert (model.config.height, processor.height, model.dtype) == (32, 32, torch.float32)
    for image, name in zip((disk.people / "query").iterdir(), "ab", strict=False):
        shutil.copy(image, f"{name}.jpg")
    (code,) = (code for code in code_blocks(PAGE, "python") if NAME in code)
    exec(compile(code, PAGE.name, "exec"), {})
    assert "1.0000" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pedestrians-smal", "pedestrians_small", "pedestrians-small-onnx"])
def test_a_misspelt_name_is_refused_with_the_right_one(name, shipped, tmp_path):
    message = f"model {name}: no such folder, and no model of the package: did you mean pedestrians-small\\?"
    flags = ["--model", name, "--output", "x"]
    data = ["--dataset", "market1501", "--data_dir", "x"]
    for command, argv in (
        (embed, [*flags, "--images", "x"]),
        (export, flags),
        (push, ["--model", name, "--to", "me/x"]),
        (train, ["--model", name, *data, "--output_dir", "x"]),
        (evaluate, ["--model", name, *data]),
        (evaluate, ["--compare", NAME, "--compare", name, *data]),
    ):
        with pytest.raises(UserError, match=message):
            command.main(argv)
    with pytest.raises(ValueError, match=message.removeprefix("model ")):
        MllmReIDVisionModel.from_pretrained(name)
    # A name on the Hub has an owner.
    assert shipped_models.shipped_folder(f"me/{name}") == f"me/{name}"


def test_a_folder_in_the_working_directory_takes_precedence(shipped, disk, tmp_path):
    Path(NAME).mkdir()
    with pytest.raises(UserError, match="model pedestrians-small: .*no config.json"):
        embed.main(["--model", NAME, "--images", str(disk.people / "query"), "--output", "embeddings"])
    shutil.copytree(shipped, NAME, dirs_exist_ok=True)
    embed.main(["--model", NAME, "--images", str(disk.people / "query"), "--output", "embeddings"])
    assert load_embeddings("embeddings").metadata["model"] == str(tmp_path / NAME)


def test_the_packed_files_are_small_agree_and_need_no_code(packed):
    folder = packed / "pretrained" / NAME
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.onnx", "model.safetensors", "processor_config.json", "run.json",
        "threshold.json",
    ]  # fmt: skip
    assert (folder / "README.md").read_text() == "a card"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values() if weight.ndim > 1} == {torch.float16}
    assert {weight.dtype for weight in weights.values() if weight.ndim == 1} == {torch.float32}
    assert not [name for name in weights if "classifier" in name]
    fields = json.loads((folder / "config.json").read_text())
    assert not {"auto_map", "custom_pipelines"} & fields.keys() and fields["base_licence"] == "apache-2.0"
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    trained = MllmReIDVisionModel.from_pretrained(packed / "run").eval()
    crops = torch.randn(5, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (model.encode_images(crops) * trained.encode_images(crops)).sum(1).min() > 0.999
    check_onnx(folder, crops)
    assert (folder / "model.onnx").stat().st_size < 1.2 * (folder / "model.safetensors").stat().st_size + 50_000


def test_a_calibration_is_added_to_a_packed_model(tmp_path):
    shutil.copy(FOLDER / "model.onnx", tmp_path)
    before = load_thresholds(str(FOLDER))["vision"]
    save_thresholds(tmp_path, {"vision": replace(before, calibration=None)})
    add_calibration(tmp_path, World(313, scenes=4, cameras=2, images_per_camera=2, test_identities=12))
    added = load_thresholds(str(tmp_path))["vision"]
    assert (added.calibration.people, added.calibration.images) == (12, 48)
    assert replace(added, calibration=before.calibration) == before
    assert (tmp_path / "threshold.json").stat().st_mode & 0o777 == 0o644
    (tmp_path / "threshold.json").write_text("{}")
    with pytest.raises(RuntimeError, match="this model has no threshold"):
        add_calibration(tmp_path)


def test_an_interrupted_packing_changes_no_file(packed, tmp_path, monkeypatch):
    shutil.copytree(packed / "pretrained" / NAME, tmp_path / NAME)
    (tmp_path / NAME / "model.safetensors").write_text("the weights before")
    before = {path.name: path.read_bytes() for path in (tmp_path / NAME).iterdir()}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_mllmreid.hub.pack.halve_onnx", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(packed / "run", tmp_path / NAME)
    assert {path.name: path.read_bytes() for path in (tmp_path / NAME).iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("given", [[], ["run"], ["run", "../elsewhere"]])
def test_packing_needs_a_checkpoint_and_a_name(given, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pack", *given])
    with pytest.raises(SystemExit, match="^usage: python -m modeling_mllmreid.hub.pack CHECKPOINT NAME$"):
        runpy.run_module("modeling_mllmreid.hub.pack", run_name="__main__")


def check_onnx(folder: Path, crops: torch.Tensor) -> None:
    """The ONNX file and the weights of a folder give the same embeddings."""
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")
    model = MllmReIDVisionModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model.encode_images(crops).numpy()
    np.testing.assert_allclose(session.run(None, {"pixel_values": crops.numpy()})[0], expected, atol=1e-4)


def test_the_random_start_of_the_recipe(disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (code for code in code_blocks(PAGE, "python") if "runs/random_resnet" in code)
    exec(compile(code, PAGE.name, "exec"), {})
    people, seen = load_reid_dataset("market1501", data_dir=str(disk.people)), []
    monkeypatch.setattr(train, "load_reid_dataset", lambda name, **options: seen.append((name, options)) or people)
    flags = "--max_steps 2 --save_steps 2 --warmup_steps 1 --identities_per_batch 2 --images_per_identity 2"
    flags += " --val_identities 0 --eval_strategy no --dataloader_num_workers 0 --disable_tqdm true"
    train.main(["pedestrians_small", *flags.split()])
    assert seen[0][0] == "rendered_town+rendered_town_summer+rendered_town_winter"
    assert sorted(seen[0][1]["data_dirs"]) == sorted(seen[0][0].split("+"))
    model = MllmReIDVisionModel.from_pretrained("runs/pedestrians_small")
    assert (model.config.height, model.feature_size, model.config.base_licence) == (128, 768, "apache-2.0")


def test_the_model_in_the_package_is_small_and_separates_people(disk):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert "to be measured" not in (FOLDER / "README.md").read_text()
    people = load_reid_dataset("market1501", data_dir=str(disk.people))
    splits = [people[name] for name in ("query", "gallery")]
    model, processor = (kind.from_pretrained(NAME) for kind in (MllmReIDVisionModel, MllmReIDVisionProcessor))
    crops = [processor(images=list(split["image"]))["pixel_values"] for split in splits]
    check_onnx(FOLDER, crops[0])
    with torch.inference_mode():
        query, gallery = (model.eval().encode_images(pixels) for pixels in crops)
    same = np.equal.outer(splits[0]["person_id"], splits[1]["person_id"])
    other_camera = np.not_equal.outer(splits[0]["camera_id"], splits[1]["camera_id"])
    similarities = (query @ gallery.T).numpy()
    assert similarities[same & other_camera].mean() > similarities[~same & other_camera].mean() + 0.2
