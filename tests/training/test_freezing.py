"""Frozen parameters are exactly those without a gradient, over the whole cross product of settings."""

import itertools

import pytest

from modeling_mllmreid.training.parameters import freeze_unused_parameters

SETTINGS = ([0.0, 0.7, 1.0], ["llm", "vision", "both"], [-1, 1], [None, -1, 1], [1.0, 0.0])
CASES = [(*case, 0.0) for case in itertools.product(*SETTINGS)]
CASES += [(*case, 0.5) for case in itertools.product([0.0, 1.0], ["llm", "vision"], [-1, 1], [None, -1], [1.0])]


@pytest.mark.parametrize(("loss_lambda", "reid_on", "llm_layer", "vision_layer", "id_weight", "pair_weight"), CASES)
def test_frozen_are_exactly_those_without_a_gradient(
    make_model, make_batch, loss_lambda, reid_on, llm_layer, vision_layer, id_weight, pair_weight
):
    # The tiny LLaVA reads the last layer of the tower. Here it reads the second last, as the real one does.
    model = make_model(
        loss_lambda=loss_lambda,
        reid_on=reid_on,
        llm_layer=llm_layer,
        vision_layer=vision_layer,
        id_weight=id_weight,
        pair_weight=pair_weight,
        pair_question_ids=[7, 9, 6],
        pair_answer_ids=[10, 11],
    )
    model.config.mllm_config.vision_feature_layer = -2
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model(**make_batch(4)).loss.backward()
    # A weight of zero gives a gradient of zeros, which trains nothing.
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    frozen = set(freeze_unused_parameters(model))
    # Key biases shift all scores of a query equally, so their gradient is a rounding error.
    unsure = {name for name in trainable if name.endswith("k_proj.bias")}
    assert frozen - unsure == trainable - reached - unsure
    # The remaining parameters still train.
    model.zero_grad()
    model(**make_batch(4)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_frozen_parameters_stay_frozen(make_model):
    model = make_model()
    model.mllm.model.language_model.requires_grad_(False)
    freeze_unused_parameters(model)
    assert not any(p.requires_grad for p in model.mllm.model.language_model.parameters())
