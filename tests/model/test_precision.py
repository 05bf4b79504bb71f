"""Number formats: a double model is exact to float64's digits, half precision is computed in float32."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel
from modeling_mllmreid.model.heads import ReIDHead, mean_pool
from modeling_mllmreid.model.losses import batch_hard_triplet_loss, distillation_sum, id_loss, language_loss_sum
from modeling_mllmreid.model.tensors import at_least_float32
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training


@pytest.mark.parametrize("format, kept", [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_pooling_heads_and_losses_are_float32_at_least(format, kept):
    torch.manual_seed(0)
    features, labels = torch.randn(8, 6, dtype=format), torch.arange(8) // 2
    head = ReIDHead(6, 4).to(kept)
    head.remake_classifier(8)
    parts = [
        at_least_float32(features),
        mean_pool(features.view(2, 4, 6)),
        mean_pool(features.view(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)),
        *head(features),
        id_loss(features, labels),
        batch_hard_triplet_loss(features, labels),
        batch_hard_triplet_loss(features, labels, features + 1, labels),
        language_loss_sum(features, labels),
        distillation_sum(features, features + 1),
    ]
    assert {part.dtype for part in parts} == {kept}


def test_a_double_model_has_the_gradient_of_its_loss_to_eight_digits(make_model, make_batch):
    """By central differences, which anything rounded to float32 on the way would spoil from the second digit on."""
    model = make_model(reid_text=True, triplet_soft_margin=True).double().train()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            # transformers' own rounds to float32.
            module.forward = lambda x, norm=module: torch.nn.functional.rms_norm(
                x, x.shape[-1:], norm.weight, norm.variance_epsilon
            )
    batch = make_batch(8)
    output = model(**batch)
    output.loss.backward()
    assert {part.dtype for part in (output.loss, *output.features.values(), *output.loss_parts.values())} == {
        torch.float64
    }
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    torch.manual_seed(1)
    way = [torch.randn_like(parameter) for parameter in trained]
    slope = sum((parameter.grad * step).sum() for parameter, step in zip(trained, way, strict=True))

    def loss_at(scale: float) -> torch.Tensor:
        with torch.no_grad():
            for parameter, step in zip(trained, way, strict=True):
                parameter.add_(step, alpha=scale)
            loss = model(**batch).loss
            for parameter, step in zip(trained, way, strict=True):
                parameter.sub_(step, alpha=scale)
        return loss

    # Two differences, so that the error of a finite step (its square) falls out.
    near, far = ((loss_at(size) - loss_at(-size)) / (2 * size) for size in (1e-5, 2e-5))
    torch.testing.assert_close((4 * near - far) / 3, slope, rtol=1e-7, atol=0)


FORMATS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to a format": lambda model: model.to(torch.float16),
    "to a device and a format": lambda model: model.to("cpu", torch.bfloat16),
    "double": lambda model: model.double(),
    "there and back": lambda model: model.half().float(),
}


@pytest.mark.parametrize("form", ["full", "vision"])
@pytest.mark.parametrize("change", FORMATS.values(), ids=FORMATS)
def test_a_model_computes_in_every_format_and_its_heads_keep_their_digits(
    make_model, make_batch, tiny_processor, form, change
):
    batch, model = make_batch(4), make_model(test_feature="concat").eval()
    for head in model.reid_head.values():
        head.bottleneck.running_mean.fill_(1 / 3)
        head.bottleneck.running_var.fill_(1e-8)  # half precision has no such number
    form_of = (lambda model: model) if form == "full" else MllmReIDVisionModel.from_reid_model
    expected, changed = form_of(model), change(form_of(make_model(test_feature="concat").eval()))
    changed.reid_head.load_state_dict(expected.reid_head.state_dict())
    changed = change(changed)
    numbers = {tensor.dtype for tensor in changed.reid_head.state_dict().values() if tensor.is_floating_point()}
    assert numbers == {torch.float64 if changed.dtype == torch.float64 else torch.float32}
    assert all(norm.running_var.min() > 0 for norm in batch_norms(changed))
    with torch.no_grad():
        features = changed.encode_images(batch["pixel_values"])
        assert features.dtype in numbers
        cosine = torch.nn.functional.cosine_similarity(features.double(), expected.encode_images(batch["pixel_values"]))
        assert cosine.min() > 0.99
        assert changed.encode_images(batch["pixel_values"][:0]).shape == (0, features.shape[1])
        if form == "full":
            text = tiny_processor(text=["a bag .", "a red shirt ."])
            assert changed.encode_text(**text).dtype in numbers
            assert changed.encode_text(**tiny_processor(text=[])).shape == (0, 32)
            shapes = {name: values.shape for name, values in changed.image_features(batch["pixel_values"][:0]).items()}
            assert shapes == {"llm": (0, 32), "vision": (0, 32), "concat": (0, 64)}
    if form == "full":
        changed.train()(**batch).loss.backward()


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]


@pytest.mark.parametrize(
    ("language_model", "tower", "quantize", "dtype"),
    [
        ("lora", "full", None, torch.bfloat16),
        ("lora", "lora", None, torch.bfloat16),
        ("lora", "lora", None, torch.float16),
        ("lora", "frozen", None, torch.bfloat16),
        ("lora", "frozen", "4bit", torch.bfloat16),
        ("frozen", "full", None, torch.bfloat16),
        ("frozen", "lora", "4bit", torch.bfloat16),
        ("full", "frozen", None, torch.bfloat16),
    ],
)
def test_trained_float32_modules_follow_frozen_half_precision(
    make_llava, make_batch, tiny_processor, tmp_path, dtype, language_model, tower, quantize
):
    """Without autocast, as after a training; `mat1 and mat2 must have the same dtype` where a cast is missing."""
    make_llava().save_pretrained(tmp_path / "native")
    args = AdapterArguments(language_model=language_model, tower=tower, lora_rank=2, quantize=quantize)
    size = {"height": 64, "width": 32, "image_prefix_ids": tiny_processor.image_prefix_ids, "num_identities": 4}
    config = args.quantization_config(dtype)
    model = MllmReIDModel.from_mllm_pretrained(
        tmp_path / "native", dtype=dtype, quantization_config=config, reid_text=True, **size
    )
    prepare_training(model, args, backbone=str(tmp_path / "native"), revision=None, dtype=dtype)
    batch = make_batch(4)
    model(**batch).loss.backward()
    features = model.eval().encode_images(batch["pixel_values"])
    assert features.isfinite().all() and features.dtype == torch.float32
    model.encode_text(**tiny_processor(text=["a bag ."]))
    model.generate(torch.tensor([tiny_processor.image_prompt_ids()] * 4), batch["pixel_values"], max_new_tokens=2)
    model.save_pretrained(tmp_path / "saved")
    # Only a backbone of the number format of before gives the digits of before.
    again = MllmReIDModel.from_pretrained(tmp_path / "saved", dtype=dtype, quantization_config=config).eval()
    assert torch.nn.functional.cosine_similarity(again.encode_images(batch["pixel_values"]), features).min() > 0.999


def test_invalid_pixels_are_refused(make_model, make_batch):
    pixels, model = make_batch(2)["pixel_values"], make_model().eval()
    for encoder in (model, MllmReIDVisionModel.from_reid_model(model)):
        for wrong in (pixels.byte(), pixels.long(), pixels[0], pixels[:, :1]):
            with pytest.raises(ValueError, match=r"pixel_values of shape .*: give floats \(B, 3, H, W\)"):
                encoder.encode_images(wrong)
    for names in (("llms",), (), ("llm", "foo")):
        with pytest.raises(ValueError, match="features .*: give 'llm', 'vision' or 'concat'"):
            model.image_features(pixels, names)
    assert set(model.image_features(pixels, ("concat",))) == {"llm", "vision", "concat"}
