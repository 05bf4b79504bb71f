"""Diagnostics: training stays the same to the last bit, the numbers are right, and each warning trips alone."""

import copy
import logging
import math
from itertools import combinations

import pytest
import torch

from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel
from modeling_mllmreid.model.losses import batch_hard_triplet_loss, id_loss
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batches import label_counts
from modeling_mllmreid.training.diagnostic_failures import find_failures
from modeling_mllmreid.training.diagnostic_measures import (
    count_equal_pairs,
    effective_rank,
    embedding_spread,
    generated_and_targets,
    identity_cosines,
    loss_gradients,
)
from modeling_mllmreid.training.diagnostics import Diagnostics
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

LORA = {"language_model": "lora", "tower": "lora", "lora_rank": 4, "lora_dropout": 0.2}


def diagnosed(trained):
    return [entry for entry in trained.trainer.state.log_history if "diag_step" in entry]


@pytest.fixture
def recorded(monkeypatch):
    """Per call of `compute_loss`: (a copy of the model as it was, the batch)."""
    calls = []
    compute_loss = ReIDTrainer.compute_loss

    def record(self, model, inputs, *args, **kwargs):
        calls.append((copy.deepcopy(model), inputs))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ReIDTrainer, "compute_loss", record)
    return calls


# ---- pure functions --------------------------------------------------------------------------------------------------


def test_effective_rank_of_known_cases():
    line = torch.outer(torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.randn(6))
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    assert effective_rank(3 * torch.linalg.qr(torch.randn(9, 5))[0].T) == pytest.approx(5, abs=1e-4)
    assert effective_rank(torch.zeros(3, 4)) == 0
    shares = [0.6, 0.3, 0.1]
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(torch.diag(torch.tensor(shares))) == pytest.approx(math.exp(entropy), abs=1e-5)


def test_cosines_equal_those_of_a_loop_over_pairs():
    rows, people = torch.nn.functional.normalize(torch.randn(7, 5), dim=1), [0, 0, 1, 1, 1, 2, 0]
    pairs = {True: [], False: []}
    for i, j in combinations(range(7), 2):
        pairs[people[i] == people[j]].append(float(rows[i] @ rows[j]))
    expected = [sum(pairs[same]) / len(pairs[same]) for same in (True, False)]
    assert identity_cosines(rows, torch.tensor(people)) == pytest.approx(expected, abs=1e-6)
    assert identity_cosines(rows, torch.arange(7))[0] is None and identity_cosines(rows, torch.zeros(7))[1] is None


def test_spread_is_that_of_centred_features_and_a_narrow_cone_is_no_collapse():
    rows, people = torch.eye(4).repeat_interleave(2, 0), torch.arange(4).repeat_interleave(2)
    spread, in_a_cone = embedding_spread(rows, people), embedding_spread(0.01 * rows + 5, people)
    assert spread == pytest.approx({"within": 1, "between": -1 / 3, "rank": 3}, abs=1e-4)
    assert in_a_cone == pytest.approx(spread, abs=1e-3)
    assert embedding_spread(torch.full((4, 3), float("nan")), people[:4]) == {}
    assert embedding_spread(torch.ones(4, 3), people[:4])["rank"] == 0


def test_gradients_where_one_part_does_not_arrive():
    state, other = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    parts = {"own": (2 * state).sum(), "other": other.sum()}
    for scale in (1.0, 2.0**16):
        got = loss_gradients(state, parts, scale)
        assert got["own"].tolist() == [2, 2, 2] and got["other"].tolist() == [0, 0, 0]
    assert state.grad is None and other.grad is None
    assert count_equal_pairs(torch.tensor([[1, 2], [1, 2], [1, 3]])) == (1, 3)


# ---- in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2, "model": {"reid_text": True, "distillation_weight": 0.5}},
        {"adapters": LORA, "activation_checkpointing": True},
        {"adapters": {**LORA, "quantize": "4bit"}, "bf16": True, "batch": {"instruction": "pool"}},
    ],
    ids=["accumulation", "lora", "4bit"],
)
def test_training_is_the_same_to_the_last_bit(train, settings):
    runs, random_states = [], []
    for steps in (0, 1):
        runs.append(train(max_steps=3, diagnostics_steps=steps, **settings))
        random_states.append(torch.get_rng_state())
    assert torch.equal(*random_states)
    plain, measured = (run.trainer.model.state_dict() for run in runs)
    assert all(torch.equal(measured[name], value) for name, value in plain.items())
    entries = [[e for e in run.trainer.state.log_history if "loss" in e] for run in runs]
    assert entries[0] == entries[1] and len(entries[0]) == 3
    assert [len(diagnosed(run)) for run in runs] == [0, 3]
    modes = [[module.training for module in run.trainer.model.modules()] for run in runs]
    assert modes[0] == modes[1]
    last = diagnosed(runs[1])[-1]
    assert last["diag_grad_lm_image"] > 0 and last["diag_grad_reid"] > 0 and last["diag_step"] == 3
    assert ("diag_grad_contrastive_text" in last) == ("model" in settings)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("reid_text", [False, True])
def test_norms_equal_those_of_a_plain_backward(train, recorded, accumulation, reid_text):
    fields = {"id_weight": 0.5, "triplet_weight": 2.0, "distillation_weight": 0.3, "reid_text": reid_text}
    trained = train(max_steps=1, model=fields, gradient_accumulation_steps=accumulation)
    (entry,) = diagnosed(trained)
    model, batch = recorded[0]
    config, people = model.config, batch["person_ids"]
    image, text = sum(label_counts(inputs) for _, inputs in recorded).tolist()

    def norm(part):
        seen = []
        tower = model.mllm.model.vision_tower
        hook = tower.register_forward_hook(lambda module, args, output: seen.append(output.hidden_states[-1]))
        outputs = model(**batch)
        hook.remove()
        seen[0].retain_grad()
        part(outputs).backward()
        return float(seen[0].grad.norm())

    def language(outputs):
        sums = outputs.language_loss_sums
        mean = (sums["image"] / image + sums["text"] / text) / 2 + 0.3 * sums["distillation"] / image
        return 0.3 * mean * accumulation

    expected = {"lm_image": norm(language), "reid": norm(lambda outputs: 0.7 * outputs.reid_loss)}
    for name in ("llm", "vision"):
        rows = torch.cat([people, people]) if reid_text and name == "llm" else people
        expected[f"id_{name}"] = norm(lambda o, n=name, r=rows: 0.35 * 0.5 * id_loss(o.id_logits[n], r))
        expected[f"triplet_{name}"] = norm(
            lambda o, n=name: 0.35 * 2 * batch_hard_triplet_loss(o.features[n], people, margin=config.triplet_margin)
        )
    got = {name.removeprefix("diag_grad_"): value for name, value in entry.items() if name.startswith("diag_grad_")}
    assert (got.pop("contrastive_text", 0) > 0) == reid_text
    assert got == pytest.approx(expected, rel=1e-3) and min(expected.values()) > 0

    outputs = model(**batch)
    gap = outputs.loss_parts["lm_image"] - outputs.loss_parts["lm_text"]
    assert entry["diag_branch_gap"] == pytest.approx(float(gap), abs=1e-5)
    spread = embedding_spread(outputs.features["vision"], people)
    assert entry["diag_rank_vision"] == pytest.approx(spread["rank"], rel=1e-4)


@pytest.mark.parametrize("loss_lambda", [0.0, 1.0])
def test_a_loss_that_is_off_has_no_part(train, loss_lambda):
    (entry,) = diagnosed(train(max_steps=2, model={"loss_lambda": loss_lambda}))
    parts = {name for name in entry if name.startswith("diag_grad_")}
    language = {"diag_grad_lm_image"}
    reid = {f"diag_grad_{name}" for name in ("id_llm", "id_vision", "triplet_llm", "triplet_vision", "reid")}
    assert parts == (reid if loss_lambda else language)
    texts = {"diag_branch_gap", "diag_same_text_share", "diag_same_target_share"}
    assert texts & entry.keys() == (set() if loss_lambda else texts)


def test_a_frozen_tower_has_no_gradients_and_one_under_a_lora_has(train):
    parts = ("diag_grad_lm_image", "diag_grad_reid")
    (frozen,) = diagnosed(train(max_steps=1, adapters={"language_model": "lora", "tower": "frozen", "lora_rank": 4}))
    assert not any(name.startswith("diag_grad") for name in frozen) and "diag_rank_vision" in frozen
    (lora,) = diagnosed(train(max_steps=1, adapters=LORA))
    assert all(lora[name] > 0 for name in parts)
    (projector,) = diagnosed(train(max_steps=1, model={"reid_on": "llm"}, adapters={"language_model": "frozen"}))
    assert all(projector[name] > 0 for name in parts)


def test_which_steps_are_measured_and_when_they_are_logged(train):
    trained = train(max_steps=6, diagnostics_steps=3, logging_steps=4)
    assert [(e["diag_step"], e["step"]) for e in diagnosed(trained)] == [(1, 4), (3, 4), (6, 6)]
    with pytest.raises(UserError, match="diagnostics_steps -1: give 0 or more"):
        train(max_steps=1, diagnostics_steps=-1)


def test_texts_are_generated_after_one_prompt_to_different_people(train, recorded):
    trained = train(max_steps=1, model={"loss_lambda": 0.5}, batch={"instruction": "pool"})
    model, batch = recorded[0]
    generated, targets = generated_and_targets(model, trained.trainer.processing_class, batch)
    shortest = min(int((row != -100).sum()) for row in batch["labels"][::2])
    assert generated.shape == targets.shape == (4, min(16, shortest))
    # Rows 0, 2, 4, 6 are the first of each person.
    assert torch.equal(targets[1], batch["labels"][2][batch["labels"][2] != -100][: targets.shape[1]])
    with torch.no_grad():
        model.mllm.model.multi_modal_projector.linear_2.weight.zero_()
    generated, _ = generated_and_targets(model, trained.trainer.processing_class, batch)
    assert count_equal_pairs(generated) == (6, 6)
    batch["labels"][2:] = -100
    generated, targets = generated_and_targets(model, trained.trainer.processing_class, batch)
    assert len(generated) == len(targets) == 0 and count_equal_pairs(generated) == (0, 0)


# ---- warnings --------------------------------------------------------------------------------------------------------

HEALTHY = {
    "grad_lm_image": 0.02,
    "grad_reid": 0.1,
    "within_llm": 0.6,
    "between_llm": -0.1,
    "rank_llm": 9.0,
    "within_vision": 0.5,
    "between_vision": -0.1,
    "rank_vision": 12.0,
    "branch_gap": 0.4,
    "same_text_share": 0.4,
    "same_target_share": 0.1,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        (
            {"grad_lm_image": 0.0003},
            "gradient at the visual encoder is 0.30% of the ReID losses': lower loss_lambda (0.9)",
        ),
        ({"grad_lm_image": 0.0}, "no gradient of the language loss reaches the visual encoder, although"),
        (
            {"rank_vision": 1.3},
            "features 'vision' collapse: effective rank 1.3 of 64 images: look at learning_rate (0.002) and triplet",
        ),
        ({"within_llm": -0.08}, "features 'llm' do not separate people: mean cosine -0.08 within identities, -0.10"),
        ({"branch_gap": 1.24}, "the image branch is 1.2 nats a token behind the text branch: lower loss_lambda (0.9)"),
        (
            {"same_text_share": 0.9},
            "writes the same text for 90% of the pairs of people, whose targets are equal for 10%",
        ),
        ({"same_text_share": 0.9, "same_target_share": 0.8}, None),
    ],
)
def test_each_failure_is_found_alone(tmp_path, change, words):
    config = MllmReIDConfig(loss_lambda=0.9)
    args = ReIDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=2e-3)
    found = list(find_failures(HEALTHY | change, config, args, images=64, people=16).values())
    assert len(found) == (words is not None) and all(words in text for text in found)
    assert find_failures({}, config, args, images=64, people=16) == {}


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "modeling_mllmreid.training.diagnostics"]


def test_real_failures_warn_once_after_the_warm_up_and_training_that_works_does_not(train, caplog, monkeypatch):
    # An image that the language model does not see: no gradient, and one text for all.
    def blind(self, *args):
        image = project(self, *args)
        return image._replace(embeddings=image.embeddings.detach() * 0)

    project = MllmReIDModel.project_image
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(MllmReIDModel, "project_image", blind)
        run = {"max_steps": 6, "warmup_steps": 3, "diagnostics_steps": 1, "model": {"reid_on": "vision"}}
        assert diagnosed(train(**run))[-1]["diag_same_text_share"] == 1
        told = [text for text in warnings_of(caplog) if "no gradient" in text or "same text" in text]
        assert len(told) == 2 and all(text.startswith("step 5: ") for text in told)
        caplog.clear()
        train(**run | {"warmup_steps": 5})
        assert not warnings_of(caplog)

    with caplog.at_level(logging.WARNING):
        settings = {"max_steps": 120, "diagnostics_steps": 60, "logging_steps": 60, "learning_rate": 3e-3}
        entry = diagnosed(train(model={"loss_lambda": 0.0}, **settings))[-1]
        assert not warnings_of(caplog)
        assert entry["diag_same_text_share"] <= 0.5 and entry["diag_grad_lm_image"] > 0


def test_a_step_without_any_target_is_no_fault(train, monkeypatch):
    capture = Diagnostics.capture

    def without_targets(self, inputs):
        for name in ("labels", "text_labels"):
            inputs[name].fill_(-100)
        return capture(self, inputs)

    monkeypatch.setattr(Diagnostics, "capture", without_targets)
    (entry,) = diagnosed(train(max_steps=1))
    texts = {"diag_grad_lm_image", "diag_branch_gap", "diag_same_text_share"}
    assert not texts & entry.keys() and entry["diag_grad_reid"] > 0


def test_reentrant_checkpoints_leave_the_gradients_out(train):
    kwargs = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    (entry,) = diagnosed(train(max_steps=1, **kwargs))
    assert "diag_grad_reid" not in entry and "diag_rank_llm" in entry


def test_a_resumed_training_logs_and_warns_what_was_measured_before_its_checkpoint(train, tmp_path, caplog):
    # Step 3 is measured, and in the checkpoint; its entry is logged at step 4.
    settings = {"max_steps": 5, "diagnostics_steps": 1, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}
    with caplog.at_level(logging.WARNING):
        whole = diagnosed(train(**settings))
        warned = warnings_of(caplog)
        caplog.clear()
        resumed = diagnosed(train(**settings, resume_from_checkpoint=str(tmp_path / "run/checkpoint-3")))
    assert [entry["diag_step"] for entry in whole] == [1, 2, 3, 4, 5] and resumed == whole
    later = [text for text in warned if not text.startswith("step 3")]
    assert warned != later and warnings_of(caplog) == later
