"""Cached gradients against the plain step: every parameter has the same gradient in every setting."""

import copy

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from modeling_mllmreid.model.losses import reid_loss
from modeling_mllmreid.training.grad_cache import _split, cached_backward
from modeling_mllmreid.training.parameters import freeze_unused_parameters

PAIRS = {"pair_weight": 0.5, "pair_question_ids": [7, 9, 6], "pair_answer_ids": [10, 11]}
LORA = {"language_model": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.3}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def language_loss_of(model, batch):
    counts = {
        branch: max(int((batch[labels][:, 1:] != -100).sum()), 1)
        for branch, labels in (("image", "labels"), ("text", "text_labels"), ("distillation", "labels"))
    }
    return lambda sums: (1 - model.config.loss_lambda) * model.language_loss(sums, counts)


def cached(model, batch, chunk):
    model.zero_grad()
    loss, output = cached_backward(
        model,
        batch,
        chunk=chunk,
        language_loss=language_loss_of(model, batch),
        reid_weight=model.config.loss_lambda,
        backward=lambda part: part.backward(),
        pair_weight=model.config.pair_weight,
    )
    return loss, output, gradients(model)


def assert_equal(got, expected, rtol):
    """Compares every gradient relative to its largest value."""
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        # The gradient of a key bias is a rounding error.
        assert float((got[name] - gradient).abs().max()) <= rtol * float(gradient.abs().max()) + 1e-15, name


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"loss_lambda": 1.0},
        {"loss_lambda": 0.0},
        {"reid_on": "vision"},
        {"reid_text": True, "distillation_weight": 0.5, "llm_layer": 1},
        {"reid_text": True, "loss_lambda": 1.0, "bnneck": False},
        PAIRS,
        {**PAIRS, "loss_lambda": 1.0, "llm_layer": 1},
        {**PAIRS, "loss_lambda": 0.0, "reid_on": "vision"},
        {"language_rows": True, "reid_on": "vision"},
        {"language_rows": True, "reid_text": True, "distillation_weight": 0.5},
        {"language_rows": True, **PAIRS},
    ],
)
def test_gradients_losses_and_statistics_are_those_of_the_plain_step(make_model, make_batch, chunk, fields):
    some = fields.get("language_rows", False)
    plain = make_model(**{name: value for name, value in fields.items() if name != "language_rows"}).double().train()
    batch = make_batch(8)
    if some:
        batch["language_rows"] = torch.arange(8) % 4 == 3
        for name in ("labels", "text_labels"):
            batch[name][~batch["language_rows"]] = -100
    if fields.get("reid_text"):
        # A whole chunk of three has no caption.
        for row in (0, 1, 2, 5):
            batch["text_caption_mask"][row] = False
            batch["labels"][row] = batch["text_labels"][row] = -100
    batch["pixel_values"] = batch["pixel_values"].double()
    freeze_unused_parameters(plain)
    model = copy.deepcopy(plain)
    torch.manual_seed(0)  # of the pairs
    expected = plain(**batch)
    expected.loss.backward()
    torch.manual_seed(0)
    loss, output, got = cached(model, batch, chunk)
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=1e-12, atol=0)
    assert_equal(got, gradients(plain), rtol=1e-9)
    assert output.loss_parts.keys() == expected.loss_parts.keys()
    for name, part in expected.loss_parts.items():
        torch.testing.assert_close(output.loss_parts[name], part, rtol=1e-12, atol=0)
    assert output.label_counts == expected.label_counts
    assert output.features.keys() == expected.features.keys()
    for name in ("text_features", "captioned"):
        rows = getattr(expected, name)
        if rows is None:
            assert getattr(output, name) is None
        else:
            torch.testing.assert_close(getattr(output, name), rows.detach(), rtol=1e-12, atol=1e-14)
    # The batch norm saw the whole batch, once.
    for one, other in zip(plain.reid_head.buffers(), model.reid_head.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_batch_without_texts_and_texts_that_only_the_language_loss_reads(make_model, make_batch, count_calls):
    batch = make_batch(8)
    batch["pixel_values"] = batch["pixel_values"].double()
    images = {name: rows for name, rows in batch.items() if not name.startswith("text_")}
    for rows, runs in ((images, 3 + 3), (batch, 3 + 2 * 3)):
        # The model reads captions, but the batch has no text branch.
        plain = make_model(reid_text=rows is images).double().train()
        model = copy.deepcopy(plain)
        expected = plain(**rows)
        expected.loss.backward()
        calls = count_calls(model.mllm.model.language_model)
        part = language_loss_of(model, batch)
        _, output = cached_backward(
            model, rows, chunk=3, language_loss=part, reid_weight=0.7, backward=lambda loss: loss.backward()
        )
        assert calls.calls == runs and output.captioned is None and output.text_features is None
        assert_equal(gradients(model), gradients(plain), rtol=1e-9)
        for head, logits in expected.id_logits.items():
            torch.testing.assert_close(output.id_logits[head], logits, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(output.features["llm"], expected.features["llm"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(output.reid_loss, expected.reid_loss.detach())
        assert output.language_loss_sums.keys() == expected.language_loss_sums.keys()
        for branch, value in expected.language_loss_sums.items():
            torch.testing.assert_close(output.language_loss_sums[branch], value.detach())


def test_dropout_is_the_same_in_both_passes(train):
    trained = train(adapters=LORA, max_steps=1, diagnostics_steps=0).trainer
    model, batch = trained.model.train(), next(iter(trained.get_train_dataloader()))
    torch.manual_seed(3)
    _, _, got = cached(model, batch, 3)

    # The same chunks with the full graph: all features, then one backward pass.
    model.zero_grad()
    torch.manual_seed(3)
    features, states = [], []
    with torch.no_grad():
        for rows in _split({k: v for k, v in batch.items() if k != "person_ids" and not k.startswith("text_")}, 3):
            states.append(torch.get_rng_state())
            model(**rows)
    sums = []
    for state, rows in zip(states, _split({k: v for k, v in batch.items() if k != "person_ids"}, 3), strict=True):
        torch.set_rng_state(state)
        output = model(**rows)
        features.append(output.features)
        sums.append(language_loss_of(model, batch)(output.language_loss_sums))
    whole = {name: torch.cat([part[name] for part in features]) for name in features[0]}
    reid, _ = reid_loss(model.config, model.reid_head, whole, None, batch["person_ids"], {})
    (model.config.loss_lambda * reid + sum(sums)).backward()
    assert_equal(got, gradients(model), rtol=1e-5)
    torch.manual_seed(4)
    _, _, other = cached(model, batch, 3)
    assert any((other[name] - got[name]).abs().max() > 1e-4 for name in got)


@pytest.mark.parametrize(
    "adapters", [None, LORA | {"lora_dropout": 0.0}, LORA | {"lora_dropout": 0.0, "quantize": "4bit"}]
)
def test_a_training_takes_the_same_steps(train, adapters):
    settings = {"adapters": adapters, "max_steps": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 1e9}
    # Plain SGD, as the steps of adaptive optimisers depend on the last digit of tiny gradients.
    settings |= {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    plain, parts = (train(f"run{chunk}", grad_cache_chunk=chunk, **settings).trainer for chunk in (0, 3))
    for one, other in zip(plain.state.log_history, parts.state.log_history, strict=True):
        for name in ("loss", "grad_norm", "id_llm", "triplet_vision", "lm_image", "diag_rank_llm"):
            assert (name in one) == (name in other)
            assert name not in one or one[name] == pytest.approx(other[name], rel=1e-3), name
    for (name, one), other in zip(plain.model.named_parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-6, rtol=1e-4), name


def test_an_optimiser_with_two_modes_switches_to_training(train, monkeypatch):
    calls = []
    monkeypatch.setattr(AcceleratedOptimizer, "train", lambda optimizer: calls.append(optimizer))
    for chunk in (0, 3):
        train(f"modes{chunk}", grad_cache_chunk=chunk, max_steps=1)
    assert len(calls) == 2


def test_mixed_precision_is_that_of_the_plain_step(train):
    """In bfloat16 every gradient is close to that of the plain step; the gradients are in float32."""
    found, start = [], None
    for chunk in (0, 3):
        settings = {"bf16": True, "grad_cache_chunk": chunk, "max_steps": 1, "diagnostics_steps": 0}
        trainer = train(f"half{chunk}", model={"reid_text": True}, **settings).trainer
        formats = []
        layer = trainer.model.mllm.model.language_model.layers[0].mlp
        layer.register_forward_hook(lambda module, args, output, to=formats: to.append(output.dtype))
        start = start or copy.deepcopy(trainer.model.state_dict())
        trainer.model.load_state_dict(start)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.zero_grad()
        trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model_wrapped, batch)
        assert set(formats) == {torch.bfloat16}
        found.append(gradients(trainer.model))
    plain, parts = found
    assert plain.keys() == parts.keys() and {gradient.dtype for gradient in parts.values()} == {torch.float32}
    for name, gradient in plain.items():
        # The gradient of a key bias is a rounding error.
        if "k_proj.bias" not in name:
            assert float((parts[name] - gradient).norm()) < 0.1 * float(gradient.norm()), name
