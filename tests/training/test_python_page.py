"""The Python blocks of docs/python.md run as they are, one after the other, on crops of a few people."""

import copy
import json
import re
import shutil
from importlib.util import find_spec

import pytest
import torch
from documents import ROOT, code_blocks
from encoders import write_encoder
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

import modeling_mllmreid
from modeling_mllmreid import (
    BatchArguments,
    MllmReIDModel,
    MllmReIDVisionModel,
    MllmReIDVisionProcessor,
    ReIDTrainingArguments,
    TrainCollator,
    TrainDataset,
    load_for_training,
)
from modeling_mllmreid.commands import evaluate
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.synthetic.flat.write import write_pedestrians
from modeling_mllmreid.training import start

PAGE = ROOT / "docs/python.md"
TRAIN, NAMES, WATCH, PLAIN, SENTENCES = code_blocks(PAGE, "python")
# Fewer people and steps than a user has; what a block sets itself stays, but for the epochs.
FEW = {"identities_per_batch": 2, "images_per_identity": 2, "use_cpu": True, "disable_tqdm": True}
# The names on the Hub in the blocks, by tiny models here with the size of a crop that suits them.
SIZE = {"height": 64, "width": 32}
HUB = {"facebook/dinov2-small": "dinov2", "openai/clip-vit-base-patch16": "clip"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder where the blocks run, and their variables after the first one."""
    root = tmp_path_factory.mktemp("python")
    people = {"train_identities": 8, "test_identities": 6, "images_per_camera": 2, "cameras": 2}
    write_pedestrians(root / "world", **people)
    for image in sorted((root / "world").glob("*/*.jpg")):
        person = root / "crops" / image.name[:4]
        person.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, person)
    variables: dict = {}
    run(TRAIN, root, variables)
    return root, variables


def few(epochs: int = 1):
    """`ReIDTrainingArguments` as a block calls it, for a few people."""

    def make(num_train_epochs: int, **given):
        return ReIDTrainingArguments(**{**FEW, **given}, num_train_epochs=epochs)

    return make


def run(code: str, root, variables: dict, epochs: int = 1) -> None:
    """Runs a block in a folder. val has two people here."""
    code = code.replace("val_identities=10", "val_identities=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(modeling_mllmreid, "ReIDTrainingArguments", few(epochs))
        # A block goes on with the names of those before.
        variables |= {"ReIDTrainingArguments": few(epochs)} if "ReIDTrainingArguments" in variables else {}
        exec(compile(code, PAGE.name, "exec"), variables)


def test_five_lines_train_on_own_crops(page):
    root, variables = page
    assert len([line for line in TRAIN.splitlines() if line]) == 5
    trained = variables["trained"]
    assert len(variables["dataset"]["train"].unique("person_id")) == 7
    assert len(set(trained.val.query["person_id"])) == 2
    assert trained.trainer.state.global_step == 5 and trained.trainer.state.best_metric > 0
    # Two people are too few for a threshold.
    assert load_thresholds(str(root / "runs/mine")) == {}
    model = AutoModel.from_pretrained(root / "runs/mine")
    assert torch.equal(model.tower.conv.weight, trained.trainer.model.tower.conv.weight)
    shipped = MllmReIDVisionModel.from_pretrained("pedestrians-small")
    assert not torch.equal(model.tower.conv.weight, shipped.tower.conv.weight)


@pytest.mark.slow  # other tests evaluate own crops
def test_the_line_that_evaluates(page, monkeypatch):
    monkeypatch.chdir(page[0])
    (line,) = (code for code in code_blocks(PAGE, "bash") if "evaluate" in code)
    evaluate.main(line.split()[2:])
    report = json.loads((page[0] / "runs/mine/metrics.json").read_text())
    assert report["tested_on"] == ["folders"] and report["metrics"]["vision"]["num_queries"] > 0


def test_the_names_of_models(page, disk):
    root, variables = page
    calls = []

    def load(name, **options):
        kind = HUB.get(name)
        path = write_encoder(root / kind, kind) if kind else disk.native if name.startswith("llava-hf/") else name
        # A crop that the tiny model has patches for.
        size = {"height": 56, "width": 28} if kind == "dinov2" else {} if path == name else SIZE
        calls.append(load_for_training(path, **{**options, **size}))

    run(NAMES, root, {**variables, "load_for_training": load})
    (mine, _), (dinov2, _), (clip, _), (llava, _) = calls
    assert mine.config.triplet_margin == 0.5 and mine.config.trained_on
    assert (dinov2.config.lora_rank, dinov2.config.pooling) == (8, "gem")
    assert clip.config.vision_config.model_type == "clip_vision_model"
    assert llava.config.loss_lambda == 1 and llava.dtype == torch.bfloat16 and llava.config.adapter
    documented = set(re.findall(r"(\w+)=", NAMES))
    assert documented <= start.MODEL_OPTIONS and len(calls) == NAMES.count("load_for_training(")


def test_callbacks_record_losses_and_metrics_and_end_the_training(page):
    root, variables = page
    # Four epochs at most; after the first nothing is better than a perfect ranking of two people.
    run(WATCH.replace("early_stopping_patience=5", "early_stopping_patience=1"), root, variables, epochs=4)
    history = variables["history"]
    entries = [json.loads(line) for line in (root / "runs/watched/training_log.jsonl").read_text().splitlines()]
    assert history.losses == {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    assert history.metrics == {entry["step"]: entry["eval_mAP"] for entry in entries if "eval_mAP" in entry}
    steps_per_epoch, best = 5, max(history.metrics.values())
    first_best = min(step for step, value in history.metrics.items() if value == best)
    assert list(history.losses) == list(range(1, first_best + steps_per_epoch + 1))
    assert len(history.losses) < 4 * steps_per_epoch


def test_the_table_of_log_entries(page):
    """Every name that is logged is in the table, for a vision encoder."""
    text = PAGE.read_text(encoding="utf-8").partition("## Watch a training")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", text))
    for entry in page[1]["trained"].trainer.state.log_history:
        for name in entry.keys() - {"step"}:
            plain = re.sub(r"^eval_(vision|llm|concat)_", "eval_", name)
            speed = name in ("train_samples_per_second", "train_steps_per_second", "total_flos")
            assert plain in documented or name.startswith("diag_") or speed, name


def test_a_plain_trainer(page):
    root, variables = page
    code = PLAIN.replace("num_train_epochs=20", "num_train_epochs=3, per_device_train_batch_size=14, use_cpu=True")
    code = code.replace("save_model()", 'save_model("runs/plain")')
    run(code.replace("remove_unused", "disable_tqdm=True, logging_steps=1, remove_unused"), root, variables)
    trainer, samples = variables["trainer"], variables["samples"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert trainer.model.config.num_identities == samples.num_identities == 7
    model, processor = (kind.from_pretrained(root / "runs/plain") for kind in (AutoModel, AutoProcessor))
    assert type(model) is MllmReIDVisionModel and type(processor) is MllmReIDVisionProcessor
    # What the page says: the classifier is saved, and a publication leaves it out.
    assert model.config.num_identities == 7
    with model.without_classifier():
        assert "reid_head.classifier.weight" not in model.state_dict()


def test_a_plain_trainer_with_a_language_model(world, parts, tmp_path):
    """The loss of `forward` mixes the language loss and the ReID losses."""
    processor, llava = parts
    fields = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids, "loss_lambda": 0.5}
    model = MllmReIDModel.from_mllm(copy.deepcopy(llava), **fields)
    samples = TrainDataset(world["train"], processor, BatchArguments(target="caption"), seed=0, language=True)
    model.set_num_identities(samples.num_identities)
    settings = {"max_steps": 2, "logging_steps": 1, "remove_unused_columns": False, "use_cpu": True}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tmp_path, disable_tqdm=True, save_strategy="no", report_to="none", **settings
        ),
        train_dataset=samples,
        data_collator=TrainCollator(processor, BatchArguments(target="caption"), language=True, reid_text=False),
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = next(iter(trainer.get_train_dataloader()))
    output = model(**batch)
    parts_of_loss = {name: value.item() for name, value in output.loss_parts.items()}
    assert {"lm_image", "lm_text", "id_llm", "triplet_vision"} <= parts_of_loss.keys()
    language = (parts_of_loss["lm_image"] + parts_of_loss["lm_text"]) / 2
    assert output.loss.item() == pytest.approx(0.5 * language + 0.5 * output.reid_loss.item(), rel=1e-5)
    trainer.train()
    assert all(entry["loss"] > 0 for entry in trainer.state.log_history if "loss" in entry)
    changed = {name.split(".")[0] for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {"mllm", "reid_head"}


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="needs sentence-transformers")
def test_sentence_transformers(page, capsys):
    root, variables = page
    crops = sorted((root / "crops").glob("*/*.jpg"))[:3]
    for crop, name in zip(crops, ("query", "a", "b"), strict=True):
        shutil.copy(crop, root / f"{name}.jpg")
    run(SENTENCES, root, variables)
    model, processor = (kind.from_pretrained(root / "runs/mine") for kind in (AutoModel, AutoProcessor))
    with torch.inference_mode():
        expected = model.eval().encode_images(processor(images=crops)["pixel_values"])
    torch.testing.assert_close(torch.from_numpy(variables["embeddings"]), expected, rtol=0, atol=1e-5)
    assert "tensor([[" in capsys.readouterr().out
    assert type(variables["embedder"][0].model) is MllmReIDVisionModel
