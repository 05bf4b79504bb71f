"""LoRA, 4-bit and 8-bit in training: exact gradients, exact resume in every form, sizes, and refused settings."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.model.adapters import quantized_class
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

FORMS = {
    "full": None,
    "lora": {"language_model": "lora", "lora_rank": 4},
    "lora everywhere": {"language_model": "lora", "tower": "lora", "lora_rank": 4},
    "tower only": {"language_model": "frozen"},
    "4bit": {"language_model": "lora", "lora_rank": 4, "quantize": "4bit"},
    "8bit": {"language_model": "lora", "lora_rank": 4, "quantize": "8bit"},
}


def quantised(make_llava, tiny_processor, tmp_path, quantize, **fields):
    make_llava(seed=5).save_pretrained(tmp_path / "native")
    args = AdapterArguments(language_model="lora", lora_rank=4, lora_dropout=0, quantize=quantize)
    size = {"height": 64, "width": 32, "image_prefix_ids": tiny_processor.image_prefix_ids, "num_identities": 4}
    model = MllmReIDModel.from_mllm_pretrained(
        tmp_path / "native", quantization_config=args.quantization_config(torch.float32), **size, **fields
    )
    torch.manual_seed(0)
    prepare_training(model, args, backbone=str(tmp_path / "native"), revision=None, dtype=torch.float32)
    with torch.no_grad():  # a new LoRA has a zero matrix, so half of its gradients are zero
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def dequantised(model):
    """Returns the same model with plain linear layers that hold the values of the 4-bit weights."""
    import bitsandbytes

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if quantized_class(module) == "Linear4bit":
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            plain.set_submodule(name, linear)
    return plain


def gradients(model, batch):
    model.zero_grad()
    model.train()(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_4bit_gradients_equal_those_of_the_dequantised_weights_also_after_an_evaluation(
    make_llava, tiny_processor, make_batch, tmp_path
):
    model, batch = quantised(make_llava, tiny_processor, tmp_path, "4bit"), make_batch()
    # On CPUs with AVX512-BF16, a forward pass would repack them. On others only the flag is visible.
    layers = [module for module in model.modules() if quantized_class(module)]
    assert len(layers) == 2 * 7 and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    plain = dequantised(model)
    expected = gradients(plain, batch)
    assert len([name for name in expected if ".lora_" in name]) == 2 * 7 * 2
    with torch.inference_mode():
        model.eval().encode_images(batch["pixel_values"])
    with torch.no_grad():
        model.eval()(**batch)
    got = gradients(model, batch)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-3, msg=name)
        assert gradient.abs().max() > 0, name


def test_activation_checkpointing_keeps_the_gradients_of_a_lora_in_both_branches(
    make_llava, tiny_processor, make_batch, tmp_path
):
    # The text branch starts at frozen embeddings, so a re-entrant checkpoint would give its LoRA no gradient.
    model, batch = quantised(make_llava, tiny_processor, tmp_path, None, loss_lambda=0.0), make_batch()
    expected = gradients(model, batch)
    model.activation_checkpointing_enable()
    got = gradients(model, batch)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_resume_and_the_best_model_give_the_same_bits_in_every_form(train, tmp_path, monkeypatch, form):
    """Six steps equal three and three steps, and training ends with the best checkpoint."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "adapters": FORMS[form]}
    whole = train("whole", **settings)
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"), **settings)
    expected, got = (run.trainer.model.state_dict() for run in (whole, resumed))
    trained = {name for name, p in whole.trainer.model.named_parameters() if p.requires_grad}
    assert trained and all(torch.equal(got[name], value) for name, value in expected.items())
    after_three = load_file(tmp_path / "whole/checkpoint-3/model.safetensors")
    moved = [name for name in trained & after_three.keys() if not torch.equal(after_three[name], expected[name])]
    assert len(moved) > 5  # training changed the weights that are compared

    # Makes the first evaluation the best one.
    evaluate = ReIDTrainer.evaluate
    monkeypatch.setattr(
        ReIDTrainer,
        "evaluate",
        lambda self, *a, **k: evaluate(self, *a, **k) | {"eval_mAP": 1 / self.state.global_step},
    )
    settings |= {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    best = train("best", **settings)
    assert best.trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    got = best.trainer.model.state_dict()
    first = load_file(tmp_path / "best/checkpoint-3/model.safetensors")
    assert all(torch.equal(got[name], value) for name, value in first.items())
    if (tmp_path / "best/checkpoint-3/adapter").exists():
        loras = load_file(tmp_path / "best/checkpoint-3/adapter/adapter_model.safetensors")
        ours = {name: value for name, value in got.items() if ".lora_" in name}
        assert len(loras) == len(ours) > 0
        for name, value in ours.items():
            assert torch.equal(loras["base_model.model." + name.removeprefix("mllm.").replace(".default.", ".")], value)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_8bit_and_paged_optimisers_can_be_chosen(train, optim):
    trained = train(max_steps=2, adapters=FORMS["lora"], optim=optim)
    assert type(trained.trainer.optimizer.optimizer).__module__.startswith("bitsandbytes")
    losses = [entry["loss"] for entry in trained.trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantize": "4bit"}, "weights in 4 or 8 bits cannot be trained: set language_model to lora or frozen"),
        ({"lora_rank": 0}, "lora_rank 0: give at least 1"),
    ],
)
def test_settings_that_exclude_each_other(fields, message):
    with pytest.raises(ValueError, match=message):
        AdapterArguments(**fields)


def test_targets_that_match_nothing_and_a_lora_that_saves_nothing(train):
    with pytest.raises(UserError, match=r"lora_targets no_such: .*"):
        train(adapters={"language_model": "lora", "lora_targets": "no_such"})
    with pytest.raises(UserError, match="tower is lora, language_model full: set language_model to lora or frozen"):
        train(adapters={"tower": "lora"})
