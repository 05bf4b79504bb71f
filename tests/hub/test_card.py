"""The model card: every number in it was measured on its weights, and its snippet runs."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from without_package import run_without_package

from modeling_mllmreid.evaluation.report import weights_digest
from modeling_mllmreid.hub.card import SNIPPET, CardData, licence_notice, read_card_data, render_card, write_card
from modeling_mllmreid.hub.training_settings import draw_loss_curves, loss_table
from modeling_mllmreid.model import MllmReIDVisionModel, MllmReIDVisionProcessor
from modeling_mllmreid.utils.errors import UserError

KEYS = ("mAP", "rank1", "rank5", "rank10", "mINP")
LOG = [
    {"step": 10 * i, "epoch": i / 5, "loss": 4 - i / 10, "id_llm": 2.0, "lm_image": 3.5, "grad_norm": 1.0}
    for i in range(1, 26)
]
SUMMARY = {"step": 253, "epoch": 5.06, "train_loss": 2.1, "train_runtime": 9.0}


def metric_values(first: float) -> dict:
    values = {key: first + number / 100 for number, key in enumerate(KEYS)}
    return {**values, "num_queries": 40, "num_valid": 40}


def interval(value: float) -> dict:
    return {"estimate": value, "low": value - 0.021, "high": value + 0.034, "confidence": 0.95}


@pytest.fixture
def metrics():
    metrics = {
        "llm": metric_values(0.712),
        "vision": metric_values(0.533),
        "concat": metric_values(0.694),
        "llm, re-ranked": metric_values(0.801),
    }
    metrics["llm, re-ranked"]["rank10"] = None
    return {
        "model": "runs/x",
        "dataset": "market1501",
        "weights": "cafe" * 16,
        "tested_on": ["market1501"],
        "overlap": [],
        "query_images": 3368,
        "gallery_images": 15913,
        "height": 252,
        "width": 126,
        "dtype": "bfloat16",
        "quantize": "4bit",
        "flip_test": True,
        "exclude": ["camera_id"],
        "pool_tracks": False,
        "test_feature": "llm",
        "metrics": metrics,
        "intervals": {n: {k: interval(metrics[n][k]) for k in KEYS} for n in ("llm", "vision", "concat")},
    }


@pytest.fixture
def run():
    return {
        "weights": "cafe" * 16,
        "data": {"train": {"images": 12936, "persons": 751}, "query": {"images": 3368, "persons": 750}},
        "sources": ["market1501"],
        "texts": [{"model": "llava-hf/llava-1.5-7b-hf", "licence": "llama2", "prompts": "['Describe.']"}],
        "adapters": {"language_model": "lora", "tower": "full", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.05,
                     "lora_targets": None, "quantize": "4bit"},
        "batches": {"instruction": "common", "target": "continuation", "text_branch": True, "val_identities": 100},
        "hardware": "1 x NVIDIA H100",
        "environment": {"torch": "2.13.0", "transformers": "5.23.0"},
        "seconds": 4321.0,
    }  # fmt: skip


@pytest.fixture
def training_args():
    return {
        "identities_per_batch": 16,
        "images_per_identity": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 3.5e-4,
        "learning_rates": {"vision_tower|projector": 1e-5},
        "lr_scheduler_type": "cosine",
        "warmup_steps": 100,
        "optim": "adamw_torch",
        "bf16": True,
        "seed": 7,
        "load_best_model_at_end": True,
    }


@pytest.fixture
def metadata(make_model, metrics, run, training_args):
    """Builds the content of a form's card, with every report unless the arguments replace it."""

    def make(form="full", config=(), **fields):
        model = make_model(num_identities=0, trained_on=["market1501"], base_licence="llama2")
        if form == "vision":
            model = MllmReIDVisionModel.from_reid_model(model)
        values = {"metrics": metrics, "training_args": training_args, "log_history": [*LOG, SUMMARY], "run": run}
        values |= {"parameters": 241234, "weights_sha": "cafe" * 16, **fields}
        return CardData(form, "owner/person", {**model.config.to_dict(), **dict(config)}, **values)

    return make


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_hub_reads_the_metadata(metadata, metrics):
    data = ModelCard(render_card(metadata())).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert data.license == "llama2"
    assert data.tags == ["person-re-identification", "mllmreid"] and data.datasets == ["market1501"]
    assert data.model_name == "owner/person"
    results = {result.metric_type: result for result in data.eval_results}
    assert all(result.dataset_type == "person-crops" for result in data.eval_results)
    assert all(result.dataset_name.startswith("market1501, ") for result in data.eval_results)
    for kind, key in {"mAP": "mAP", "rank-1": "rank1", "mINP": "mINP"}.items():
        assert results.pop(kind).metric_value == pytest.approx(100 * metrics["metrics"]["llm"][key])
    assert not results


def test_every_number_of_the_results_table_was_measured(metadata, metrics):
    results = section(render_card(metadata()), "Results")
    lines = [line for line in results.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(metrics["metrics"])
    for line, (name, measured) in zip(lines, metrics["metrics"].items(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0].removesuffix(" (test feature)") == name
        for cell, key in zip(cells[1:], KEYS, strict=True):
            i = metrics["intervals"].get(name, {}).get(key)
            shares = [measured[key], *([i["low"], i["high"]] if i else [])]
            expected = ["-"] if shares == [None] else [f"{100 * share:.1f}" for share in shares]
            assert re.findall(r"[\d.]+|^-$", cell) == expected
    assert "| llm (test feature) |" in results and "95 % interval over people" in results
    assert "3,368 query and 15,913 gallery images" in results and "252 x 126, bfloat16" in results
    assert "the query's camera are dropped" in results and "mirror image" in results
    assert "The language model had 4-bit weights; with other weights the results differ" in results
    assert f"Measured on these weights, SHA-256 `{'cafe' * 16}`" in results


def test_a_card_without_measurements_has_no_numbers(metadata):
    bare = metadata(metrics=None, training_args=None, log_history=[], run=None, parameters=0, weights_sha="")
    card = render_card(bare)
    assert ModelCard(card).data.eval_results is None and "model-index" not in card
    assert section(card, "Results").strip() == "Retrieval on a test set: not measured."
    assert not re.search(r"\d", section(card, "Training")) and section(card, "Training").count("ot recorded") == 6
    assert not re.search(r"\d\.\d|\d ?%", card.split("\n# ")[1].replace("LLaVA-1.5", "").replace("Apache-2.0", "").
                         replace("2401.13201", ""))  # fmt: skip
    assert "Its quality is not measured" in card


def test_the_training_section(metadata):
    training = section(render_card(metadata(has_loss_picture=True)), "Training")
    for line in (
        "| train | 12,936 | 751 |",
        "| batch | P x K = 16 x 4 on each device, gradients of 2 batches added |",
        "| optimiser steps | 253 |",
        "| learning rates by parameter name | `vision_tower\\|projector`: 1e-05 |",
        "| lambda (share of the ReID losses) | 0.7 |",
        "| precision | bfloat16 |",
        "| LoRA | rank 16, alpha 32, dropout 0.05 |",
        "| quantisation of the frozen language model | 4bit |",
        "- **Hardware**: 1 x NVIDIA H100",
        "- **Time**: 1 h 12 min",
        "- **Environment**: torch 2.13.0, transformers 5.23.0",
        "| step | loss | id_llm | lm_image |",
        "| 250 | 1.500 | 2.000 | 3.500 |",
    ):
        assert line in training.splitlines()
    assert "](loss.png)" in training
    pairs = section(
        render_card(metadata(training_args={"pairs_per_batch": 64, "identities_per_batch": 16})), "Training"
    )
    assert "| batch | 64 shuffled images with captions on each device |" in pairs.splitlines()
    assert "loss.png" not in render_card(metadata())


def test_the_loss_table_has_ten_points_at_most_with_first_and_last():
    table = loss_table([*LOG, SUMMARY])
    assert table[0] == ["step", "loss", "id_llm", "lm_image"]
    assert len(table) == 11 and table[1][0] == "10" and table[-1][0] == "250"
    assert loss_table([SUMMARY]) == []
    assert loss_table([LOG[0], {"step": 5, "loss": 1.0}])[2] == ["5", "1.000", "-", "-"]


def test_the_loss_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw_loss_curves(tmp_path / "loss.png", [*LOG, SUMMARY])
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG" and picture.width > 600
    with pytest.raises(ValueError, match="no entry with a loss"):
        draw_loss_curves(tmp_path / "none.png", [SUMMARY])


def test_forms(metadata):
    full, vision = render_card(metadata()), render_card(metadata("vision", weights_sha="beef"))
    thin = render_card(metadata("thin", {"backbone": "llava-hf/llava-1.5-7b-hf", "backbone_revision": "abc123"}))
    assert "the notice that it requires is in `NOTICE`" in full and "NOTICE" not in thin
    assert ModelCard(thin).data.base_model == "llava-hf/llava-1.5-7b-hf" and "commit abc123" in thin
    assert ModelCard(full).data.base_model is None
    assert "without the language model" in vision and "search by text" not in vision and "search by text" in full
    results = section(vision, "Results")
    assert "| vision (test feature) | 53.3 [51.2, 56.7] |" in results and "llm" not in results
    assert "Measured on the checkpoint that this was exported from" in results
    assert {r.metric_value for r in ModelCard(vision).data.eval_results} == {53.3, 54.3, 57.3}
    assert ModelCard(vision).data.license == "other" and "lambda" not in section(vision, "Training")


def test_a_local_backbone_is_no_base_model(metadata, tmp_path):
    card = render_card(metadata("thin", {"backbone": str(tmp_path)}))
    assert ModelCard(card).data.base_model is None and str(tmp_path) not in card


def test_overlaps_are_shown_and_kept_out_of_the_index(metadata, metrics, run):
    said = "cuhk_pedes and market1501 share images of market1501"
    metrics["overlap"] = [said]
    run["published_counts"] = {"cuhk_pedes": True, "market1501": True}
    card = render_card(metadata(config={"overlap": [said], "trained_on": ["cuhk_pedes", "market1501:all"]}))
    assert card.count("[!WARNING]") == 2 and card.count(f"> - {said}") == 2
    assert "knowingly trained on" in card and "not results on unseen people" in section(card, "Results")
    assert ModelCard(card).data.eval_results is None
    assert ModelCard(card).data.datasets == ["cuhk_pedes", "market1501"]
    assert "[!WARNING]" not in render_card(metadata(config={"trained_on": None, "overlap": None}, metrics=None))


def test_a_published_set_is_named_where_its_counts_say_so(metadata, metrics, run):
    """A user's own crops in Market-1501's layout are not Market-1501."""
    published = render_card(metadata())
    assert "Data: market1501 (published counts: matched)." in section(published, "Results")
    assert "- **Trained on**: market1501\n" in published
    for counts in ({}, {"published_counts": {"market1501": False}}):
        own = {**metrics, "query_images": 4, "gallery_images": 8, **counts}
        few = {**run, "data": {"train": {"images": 8, "persons": 2}}, **counts}
        card = render_card(metadata(metrics=own, run=few))
        data, results = ModelCard(card).data, section(card, "Results")
        assert data.datasets is None and "published counts: matched" not in card
        said = "images in the layout of market1501, not known to be the published set"
        assert f"Data: {said}." in results and data.eval_results[0].dataset_name.startswith(f"{said}, 4 query")
        assert "- **Trained on**: market1501 (its layout, not the published set)" in card
        assert "not with its published counts" in section(card, "Data and licences")
    # The counts of a part of several sets were not recorded by older versions.
    unknown = render_card(metadata(run={**run, "sources": ["market1501", "msmt17"]}))
    assert "- **Trained on**: market1501 (not known to be the published set)" in unknown
    assert ModelCard(unknown).data.datasets is None


def test_data_licences_and_texts(metadata, run):
    names = [
        "market1501",
        "my shop",
        "occluded_duke",
        "rendered pedestrians",
        "rendered_pedestrians",
        "rendered_street",
    ]
    said = section(render_card(metadata(config={"trained_on": names})), "Data and licences")
    assert "- `market1501`: for research only" in said and "- `my shop`: see the data set's own terms" in said
    assert re.search("`occluded_duke`: .*withdrawn", said)
    for name in names[3:]:
        assert re.search(f"`{name}`: .*no real person; Apache-2.0", said)
    assert "- captions by `llava-hf/llava-1.5-7b-hf`, licence llama2" in said


def test_rendered_people_are_no_benchmark(metadata, metrics, run):
    """What the demo publishes: its own people, its own weights, under its own licence."""
    metrics |= {"tested_on": ["rendered_pedestrians"], "query_images": 4, "gallery_images": 8}
    run |= {"sources": ["rendered_pedestrians"], "published_counts": {}, "base_model": "the demo's own language model"}
    run["texts"] = [{"model": "the demo's own language model", "licence": "apache-2.0"}]
    config = {"trained_on": ["rendered_pedestrians"], "base_licence": "apache-2.0"}
    card = render_card(metadata(config=config))
    data = ModelCard(card).data
    assert (data.license, data.datasets, data.base_model) == ("apache-2.0", ["rendered_pedestrians"], None)
    assert all(result.dataset_name.startswith("rendered_pedestrians, 4") for result in data.eval_results)
    for wrong in ("market1501", "Market-1501", "llama2", "Llama 2", "NOTICE", "Benchmarks of person"):
        assert wrong not in card
    assert "under the licence `apache-2.0`" in card and "published counts" not in card


def test_the_llama_notice_is_for_a_base_under_llamas_licence(make_model):
    """Never by the architecture: SmolLM2 has Llama's, under Apache-2.0, and so has a tiny model made here."""
    line = (
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
        "All Rights Reserved."
    )
    model = make_model(base_licence="llama2")
    for config in (model.config, model.config.to_dict()):
        assert line in licence_notice(config).splitlines()
    assert model.config.get_text_config().model_type == "llama"
    for licence in (None, "apache-2.0"):
        assert licence_notice(make_model(base_licence=licence).config) is None
    # An older checkpoint kept the name of the published language model inside.
    older = make_model().config.to_dict()
    older["mllm_config"]["text_config"]["_name_or_path"] = "lmsys/vicuna-7b-v1.5"
    assert line in licence_notice(older)
    assert licence_notice({**model.config.to_dict(), "backbone": "llava-hf/llava-1.5-7b-hf"}) is None
    vision = MllmReIDVisionModel.from_reid_model(model)
    assert vision.config.base_licence == "llama2" and licence_notice(vision.config) is None


def test_the_cards_of_other_licences(metadata):
    said = {
        licence: render_card(metadata(config={"base_licence": licence}))
        for licence in ("apache-2.0", "cc-by-4.0", None)
    }
    for licence, card in said.items():
        # Real people's pictures were trained on: the weights are not free, whatever the base was.
        assert ModelCard(card).data.license == "other" and "Llama 2 Community" not in card
        assert (f"is under the licence `{licence}`" if licence else "licence of the base model is not recorded") in card
    vision = render_card(metadata("vision"))
    assert "language model is under the Llama 2 Community License; the language model is not in this form" in vision
    assert ModelCard(vision).data.license == "other"


@pytest.fixture
def saved(make_model, tiny_processor, tmp_path):
    """A tiny vision form in a folder."""
    MllmReIDVisionModel.from_reid_model(make_model().eval()).save_pretrained(tmp_path / "saved")
    MllmReIDVisionProcessor(tiny_processor.image_processor).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_reports_of_other_weights_are_left_out(saved, metrics, run):
    def write(name, content):
        (saved / name).write_text(json.dumps(content), encoding="utf-8")

    digest = weights_digest(saved)
    write("metrics.json", {**metrics, "weights": digest})
    write("run.json", {**run, "weights": "of others"})
    write("trainer_state.json", {"log_history": LOG})
    metadata = read_card_data(saved, "vision", "person")
    assert metadata.metrics["weights"] == metadata.weights_sha == digest and metadata.run is None
    assert metadata.log_history == LOG and metadata.training_args is None and not metadata.has_loss_picture
    exported = read_card_data(saved, "vision", "person", measured_on="of others", parameters=3)
    assert exported.metrics is None and exported.run["seconds"] == 4321.0 and exported.weights_sha == digest
    for weights in ({}, {"weights": ""}):  # measured on a name on the Hub, or before digests were kept
        write("metrics.json", {k: v for k, v in metrics.items() if k != "weights"} | weights)
        assert read_card_data(saved, "vision", "person", measured_on="").metrics is None
    write("metrics.json", {"weights": digest, "metrics_over_splits": {}})
    write("trainer_state.json", {"log_history": [SUMMARY]})
    metadata = read_card_data(saved, "vision", "person")
    assert metadata.metrics is None and metadata.log_history == []


def test_the_digest_is_of_names_and_contents(tmp_path):
    assert weights_digest(tmp_path) == weights_digest("owner/nothing here") == ""
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    digests = [weights_digest(tmp_path)]
    (tmp_path / "adapter").mkdir()
    save_file({"b": torch.zeros(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    digests.append(weights_digest(str(tmp_path)))
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    digests.append(weights_digest(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    digests.append(weights_digest(tmp_path))
    assert len(set(digests)) == 4 and {len(digest) for digest in digests} == {64}
    (tmp_path / "config.json").write_text("{}")
    save_file({"features": torch.zeros(2)}, tmp_path / "embeddings.safetensors")  # a user's own file
    assert weights_digest(tmp_path) == digests[-1]
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read \(No such file"):
        weights_digest(tmp_path)


def test_the_snippet_of_the_card_runs(saved, tmp_path):
    metadata = read_card_data(saved, "vision", str(saved))
    write_card(saved, metadata)
    card = (saved / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert code == SNIPPET.format(name=saved)
    for number, name in enumerate(("query.jpg", "gallery.jpg")):
        Image.linear_gradient("L").rotate(90 * number).convert("RGB").resize((50, 90)).save(tmp_path / name)
    # As a reader of the card runs it, who does not have the package.
    output = run_without_package(code, folder=tmp_path)
    printed = [float(number) for number in re.findall(r"-?\d\.\d*", output)]
    assert len(printed) == 4 and printed[0] == pytest.approx(1, abs=1e-3) and printed[1] == printed[2] < 1
