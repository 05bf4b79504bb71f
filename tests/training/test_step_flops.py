"""The FLOPs of a training step by arithmetic equal those that torch counts in a real step."""

import pytest
import torch
from families import IMAGE_TOKEN, build_reid
from torch.utils.flop_counter import FlopCounterMode

from modeling_mllmreid.training.adapters import AdapterArguments, apply_adapters
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.memory import CAPTION_TOKENS, PROMPT_TOKENS
from modeling_mllmreid.training.parameters import freeze_unused_parameters
from modeling_mllmreid.training.step_flops import step_flops

TARGET = 6
# All that the arithmetic knows of a prompt is its usual length.
PREFIX = [5] * PROMPT_TOKENS


def sequences(start: list[int], length: int, batch: int) -> dict[str, torch.Tensor]:
    """Prompts that end with a target of TARGET tokens."""
    ids = torch.tensor([[*start, *[7] * (length - len(start))]] * batch)
    labels = ids.clone()
    labels[:, :-TARGET] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("family", ["LLaVA, DINOv2", "SmolVLM"])
@pytest.mark.parametrize(
    ("fields", "language_model", "text_branch", "share"),
    [
        ({"reid_on": "vision", "loss_lambda": 1.0}, "full", False, 1.0),
        ({"reid_on": "both", "loss_lambda": 1.0, "llm_layer": 2}, "full", False, 1.0),
        ({"reid_on": "both", "loss_lambda": 0.7}, "frozen", False, 1.0),
        ({"reid_on": "both", "loss_lambda": 0.7}, "lora", True, 1.0),
        ({"reid_on": "vision", "loss_lambda": 0.7}, "frozen", False, 1 / 3),
        ({"reid_on": "llm", "loss_lambda": 0.7}, "frozen", False, 1 / 3),
        ({"reid_on": "both", "loss_lambda": 0.7}, "lora", True, 1 / 3),
    ],
)
def test_they_are_those_of_a_real_step(family, fields, language_model, text_branch, share, tmp_path):
    batches = BatchArguments(text_branch=text_branch, max_target_tokens=TARGET, language_share=share)
    adapters = AdapterArguments(language_model=language_model, tower="full", lora_dropout=0.0)
    args = ReIDTrainingArguments(str(tmp_path), identities_per_batch=3, images_per_identity=2, use_cpu=True)
    model = build_reid(family, image_prefix_ids=PREFIX, **fields).train()
    config = type(model.config).from_dict(model.config.to_dict())
    estimate = step_flops(config, adapters, args, batches, dtype=torch.float32)

    apply_adapters(model, adapters, torch.float32)
    freeze_unused_parameters(model)
    inputs = {}
    if fields["loss_lambda"] < 1:
        prompt = [*PREFIX, *[IMAGE_TOKEN] * model.config.num_image_tokens]
        inputs |= sequences(prompt, len(prompt) + TARGET, 6)
    if text_branch:
        text = sequences([1], CAPTION_TOKENS + PROMPT_TOKENS + TARGET, 6)
        inputs |= {f"text_{name}": tensor for name, tensor in text.items()}
    if share < 1:
        inputs["language_rows"] = torch.arange(6) < 6 * share
    pixels = torch.randn(6, 3, model.config.height, model.config.width)
    with FlopCounterMode(display=False) as counter:
        model(pixels, **inputs, person_ids=torch.tensor([0, 0, 1, 1, 2, 2])).loss.backward()
    # The heads are no part of the arithmetic.
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.02)
