"""Runs liger-kernel's kernels on a CPU, through Triton's interpreter, and prints how far they are from the stock ones.

A process of its own, since Triton reads the variable when its kernels are defined.
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from families import CONFIGS, build_reid, prompts
from liger_kernel.ops import geglu, rms_norm
from tiny_training import train_tiny, world_of
from transformers.models.llama import modeling_llama
from triton.runtime import interpreter

from modeling_mllmreid.training import kernels, stock_settings


def complete_the_interpreter() -> None:
    """Gives the interpreter what it lacks for these kernels: floats as arguments, and two functions of CUDA."""
    convert = interpreter._implicit_cvt

    def with_floats(value):
        if isinstance(value, float):
            handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(value)

    interpreter._implicit_cvt = with_floats
    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)
    geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def step(model, half: bool = False) -> dict[str, torch.Tensor]:
    """Returns the loss of one batch and all gradients."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, model.config.height, model.config.width, generator=generator)
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        output = model(pixels, **prompts(model, 2), person_ids=torch.tensor([0, 1]))
    output.loss.backward()
    return {"loss": output.loss.detach()} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def difference(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Returns the largest difference of a tensor, relative to its norm (or 1e-3, as zeros are rounded)."""
    assert got.keys() == expected.keys()
    return max(float((got[name] - value).norm() / (value.norm() + 1e-3)) for name, value in expected.items())


def family(name: str) -> dict:
    """Compares a step of a family in float32 and under autocast. Triton's interpreter has no bfloat16."""
    CONFIGS[name]["text_config"] |= {"num_hidden_layers": 1}
    CONFIGS[name]["text_config"].pop("layer_types", None)
    model = build_reid(name).train()
    exact, half = step(model), step(model, half=True)
    classes = dict(vars(sys.modules[type(model.language_model).__module__]))
    changed = kernels.use_liger(model.language_model)
    same_classes = classes == vars(sys.modules[type(model.language_model).__module__])
    return {
        "changed": changed,
        "same_classes": same_classes,
        "difference": difference(step(model), exact),
        "half": [difference(step(model, half=True), exact), difference(half, exact)],
        "elsewhere": [
            part for part, module in model.named_modules() if "forward" in vars(module) and "language" not in part
        ],
    }


def training(people: str) -> dict:
    """Trains a LoRA for two steps with diagnostics of each, with the kernels and without."""
    stock_settings.check_kernels = kernels.check_kernels = lambda args: None  # which asks for a GPU
    world = world_of(Path(people))
    weights = []
    with tempfile.TemporaryDirectory() as folder:
        for name, used in (("plain", False), ("liger", True)):
            trainer = train_tiny(
                Path(folder),
                world,
                name,
                adapters={"language_model": "lora", "tower": "full", "lora_dropout": 0.0},
                identities_per_batch=2,
                max_steps=2,
                diagnostics_steps=1,
                optim="sgd",
                learning_rate=0.1,
                use_liger_kernel=used,
            ).trainer
            weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
            measured = {key for entry in trainer.state.log_history for key in entry if key.startswith("diag_grad")}
    return {"difference": difference(weights[1], weights[0]), "measured": sorted(measured)}


complete_the_interpreter()
logging.basicConfig(level=logging.WARNING)
result = {"training": training(sys.argv[1])} | {name: family(name) for name in sys.argv[2:]}
result["rotary"] = modeling_llama.apply_rotary_pos_emb.__module__
print("RESULT", json.dumps(result))
