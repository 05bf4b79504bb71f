"""Learning rates by module."""

import pytest
import torch

from modeling_mllmreid.training import parameters
from modeling_mllmreid.training.adapters import AdapterArguments, apply_adapters
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.parameters import parameter_groups
from modeling_mllmreid.utils.errors import UserError


def test_the_first_matching_pattern_sets_the_rate_and_vectors_do_not_decay(make_model):
    model = make_model()
    rates = {r"vision_tower\.": 1e-5, "mllm": 1e-4}
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.1, learning_rates=rates)
    of = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert of[id(model.mllm.model.vision_tower.embeddings.patch_embedding.weight)] == (1e-5, 0.1)
    assert of[id(model.mllm.model.language_model.norm.weight)] == (1e-4, 0.0)
    assert of[id(model.reid_head["llm"].classifier.weight)] == (1e-3, 0.1)
    assert len(of) == sum(p.requires_grad for p in model.parameters())


def test_a_pattern_that_matches_nothing_is_refused(make_model):
    with pytest.raises(UserError, match="'vison' matches no trained parameter"):
        parameter_groups(make_model(), learning_rate=1e-3, weight_decay=0.0, learning_rates={"vison": 1e-5})


def test_a_pattern_that_would_run_for_hours_is_stopped(make_model, monkeypatch):
    monkeypatch.setattr(parameters, "PATTERN_SECONDS", 0.1)
    model, evil = make_model(), r"(.|.)*(.|.)*(.|.)*[A-Z]"
    with pytest.raises(UserError, match=r"learning_rates: .* takes longer than 0.1 s on one name"):
        parameter_groups(model, learning_rate=1e-3, weight_decay=0.0, learning_rates={evil: 1e-5})
    with pytest.raises(UserError, match=r"lora_targets: .* takes longer than 0.1 s on one name"):
        apply_adapters(model, AdapterArguments(language_model="lora", lora_targets=evil), torch.float32)


@pytest.mark.parametrize(
    ("rates", "message"),
    [("{", "not a JSON object"), ({"(": 1e-3}, "not a regular expression"), ({"a": -1.0}, "give 0 or more")],
)
def test_malformed_learning_rates_are_refused(tmp_path, rates, message):
    with pytest.raises(UserError, match=message):
        ReIDTrainingArguments(output_dir=str(tmp_path), learning_rates=rates, use_cpu=True)
