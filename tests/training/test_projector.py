"""The first stage: the projector of a composed LLaVA is trained alone, on shuffled images with captions."""

import json
import shutil

import pytest
import torch
from halves import write_language_model, write_tower
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from modeling_mllmreid.commands import compose, continuations, export, train
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError

PROJECTOR = "model.multi_modal_projector."
# Two steps are an epoch: a run killed after nine continues in the middle of one.
STEPS, KILLED_AFTER = 24, 9
TINY = {
    "height": 32,
    "width": 16,
    "pairs_per_batch": 36,
    "max_target_tokens": 16,
    "learning_rate": 0.05,
    "warmup_steps": 1,
    "max_steps": STEPS,
    "save_steps": KILLED_AFTER,
    "save_total_limit": 3,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "use_cpu": "true",
    "disable_tqdm": "true",
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A composed LLaVA whose language model reacts to the image tokens."""
    root = tmp_path_factory.mktemp("composed")
    write_tower(root / "tower", "clip", initializer_range=0.3)
    write_language_model(root / "language_model", "llama", initializer_range=0.3, tie_word_embeddings=True)
    halves = ["--tower", str(root / "tower"), "--language_model", str(root / "language_model")]
    compose.main([*halves, "--output", str(root / "llava"), "--tower_licence", "mit"])
    return root / "llava"


def captions_of(people):
    return ["--dataset", "market1501", "--data_dir", str(people), "--captions_file", str(people / "reid_raw.json")]


def first_stage(llava, people, output, **fields):
    given = {"model": llava, "output_dir": output, **TINY, **fields}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    train.main(["projector", *captions_of(people), *flags])
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def test_the_first_stage_trains_the_projector_alone_and_the_second_starts_from_it(llava, people, tmp_path, capsys):
    log = first_stage(llava, people, tmp_path / "whole")
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == STEPS and sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.1
    output = capsys.readouterr().out
    assert "72 training images" in output and "query" not in output
    assert not (tmp_path / "whole/metrics.json").exists()

    # A killed run continues to the same weights and the same log, to the last bit.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for path in (tmp_path / "killed").iterdir():
        if path.name != f"checkpoint-{KILLED_AFTER}":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed = first_stage(llava, people, tmp_path / "killed")
    weights, expected = (load_file(tmp_path / run / "model.safetensors") for run in ("killed", "whole"))
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    times = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    plain = [[{k: v for k, v in e.items() if k not in times} for e in entries] for entries in (resumed, log)]
    assert plain[0] == plain[1]

    # The native LLaVA has the trained projector, and the other weights of the composed one.
    export.main(["--model", str(tmp_path / "whole"), "--to", "native", "--output", str(tmp_path / "native")])
    trained, start = (
        LlavaForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (tmp_path / "native", llava)
    )
    changed = {name for name in trained if not torch.equal(trained[name], start[name])}
    assert trained.keys() == start.keys() and changed == {name for name in trained if name.startswith(PROJECTOR)}
    assert all(torch.equal(weights[f"mllm.{name}"], trained[name]) for name in changed)
    native = json.loads((tmp_path / "native/preprocessor_config.json").read_text())
    assert native["size"] == {"height": 32, "width": 32}

    # It is where continuations and the second stage start, and what it was trained on is not forgotten.
    model, _ = load_model(ModelArguments(str(tmp_path / "native")), {"height": 32, "width": 16})
    assert model.config.trained_on == ["market1501"] and model.config.base_licence is None
    texts = tmp_path / "texts.jsonl"
    flags = ["--model", str(tmp_path / "native"), *captions_of(people), "--output", str(texts), "--max_new_tokens", "2"]
    continuations.main(flags)
    licences = {json.loads(line)["provenance"]["licence"] for line in texts.read_text().splitlines()}
    assert licences == {"mit, unknown"}
    second = {**TINY, "max_steps": 1, "identities_per_batch": 2, "images_per_identity": 2}
    del second["pairs_per_batch"], second["save_steps"]
    given = {"model": tmp_path / "native", "output_dir": tmp_path / "second", "texts": texts, "eval_strategy": "no"}
    train.main([*captions_of(people), *(part for k, v in {**second, **given}.items() for part in (f"--{k}", str(v)))])
    assert json.loads((tmp_path / "second/config.json").read_text())["base_licence"] == "mit, unknown"


def test_mistakes(llava, people, tmp_path):
    for fields, message in (
        ({"loss_lambda": 0.5}, r"pairs_per_batch: the ReID losses need batches of P x K: set loss_lambda \(0.5\) to 0"),
        ({"pairs_per_batch": 0}, "pairs_per_batch 0: give 1 or more"),
        ({"balance_sets": "true"}, "balance_sets: is for batches of P x K: leave it out, or leave pairs_per_batch out"),
        ({"pairs_per_batch": 100}, "72 images with a caption, but pairs_per_batch 100 x world_size 1 needs 100: lower"),
    ):
        with pytest.raises(UserError, match=message):
            first_stage(llava, people, tmp_path / "run", **fields)
