"""Measures each family of multimodal LLMs: tokens and FLOPs of a crop, overhead of an embedding, training on a GPU.

python benchmarks/families.py [--parts cost overhead training] [--families NAME ...] [--size published] [--repeats 20]

cost      image tokens and FLOPs of `encode_images` for one crop of the family's default size, by arithmetic on tensors
          without memory, at the published sizes; estimated memory of a LoRA step of 16 x 4 images with activation
          checkpointing, the tower trained in full.
overhead  `encode_images` against the same calls of tower, projector and language model, replayed with ready inputs.
training  one LoRA step and one 4-bit step with random weights: peak memory against the estimate of `train --dry_run`,
          images a second of `encode_images`. At the published sizes it needs a GPU of 80 GB.

`--size small` takes copies with four layers, which run anywhere.
"""

import argparse
import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import timing
import torch
from family_shapes import PUBLISHED, config_of
from models import quantize_language_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.fake_runs import fake_run
from modeling_mllmreid.training.memory import estimate_memory
from modeling_mllmreid.training.parameters import freeze_unused_parameters

PREFIX = [1] * 16


def main() -> None:
    """Runs the parts and prints their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["cost", "overhead"], choices=("cost", "overhead", "training"))
    parser.add_argument("--families", nargs="+", default=list(PUBLISHED), choices=PUBLISHED, metavar="NAME")
    parser.add_argument("--size", default="published", choices=("published", "small"))
    parser.add_argument("--batch_size", type=int, default=8)
    timing.add_arguments(parser, repeats=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = timing.Results(args)
    for part in args.parts:
        for name in args.families:
            {"cost": cost, "overhead": overhead, "training": training}[part](name, args, results)
            gc.collect()
    results.append()


def cost(name: str, args: argparse.Namespace, results: timing.Results) -> None:
    """Adds parameters, image tokens and FLOPs of one crop, and the estimated memory of a LoRA step of 16 x 4."""
    config = MllmReIDConfig(mllm_config=config_of(name, small=args.size == "small"), image_prefix_ids=PREFIX)
    with torch.device("meta"):
        model = MllmReIDModel(config).eval()
    parameters = sum(p.numel() for p in model.parameters())
    flops = {}
    with torch.no_grad(), fake_run(model):
        pixels = torch.empty(1, 3, config.height, config.width)
        # `llm` would add deepstack features at positions that a run without memory does not know.
        runs: dict[str, Callable[[], Any]] = {
            "vision": lambda: model.pool_vision(model.run_tower(pixels)),
            "llm": lambda: model.pool_image(model.project_image(model.run_tower(pixels))._replace(deepstack=())),
        }
        for feature, run in runs.items():
            with FlopCounterMode(display=False) as counter:
                run()
            flops[feature] = counter.get_total_flops() / 1e9
    adapters = AdapterArguments(language_model="lora", tower="full")
    arguments = ReIDTrainingArguments(output_dir="unused", bf16=True, activation_checkpointing=True, use_cpu=True)
    memory = estimate_memory(config, adapters, arguments, BatchArguments(), dtype=torch.bfloat16).total
    results.add(
        f"{name}: {parameters / 1e9:.2f} B, {config.height}x{config.width}, {config.num_image_tokens} image tokens",
        f"{flops['llm']:.0f} GFLOP llm, {flops['vision']:.0f} vision, {memory / 2**30:.1f} GiB",
    )


def overhead(name: str, args: argparse.Namespace, results: timing.Results) -> None:
    """Adds the ratio of `encode_images` to the calls of its modules, replayed with ready inputs."""
    # Small copies even with `--size published`: overhead of Python is largest there.
    config = config_of(name, small=True)
    torch.manual_seed(0)
    mllm = AutoModelForImageTextToText.from_config(config).to(args.device)
    model = MllmReIDModel.from_mllm(mllm, image_prefix_ids=PREFIX).to(args.device).eval()
    pixels = torch.randn(args.batch_size, 3, model.config.height, model.config.width, device=args.device)
    with torch.inference_mode():
        replay = recorded_calls(model, lambda: model.encode_images(pixels))
        functions = {"floor": replay, "ours": lambda: model.encode_images(pixels), "floor_again": replay}
        seconds = timing.alternate(functions, args.repeats, args.device)
    kind = config.model_type
    results.ratio(f"bare modules / themselves, {kind}", seconds["floor_again"], seconds["floor"])
    results.ratio(f"encode_images / bare modules, {kind}", seconds["ours"], seconds["floor"], 1.1)


def recorded_calls(model: MllmReIDModel, run: Callable[[], Any]) -> Callable[[], None]:
    """Returns a function that repeats the calls of tower, projector and language model that a run makes."""
    paths = [model.backbone.tower_path, model.backbone.language_path, *model.backbone.projector_paths]
    modules = [dict(model.mllm.named_modules())[path] for path in paths if path in dict(model.mllm.named_modules())]
    tower = modules[0]
    calls: list[tuple[nn.Module, Any, Any]] = []
    depth = 0

    def enter(module: nn.Module, inputs: Any, options: Any) -> None:
        nonlocal depth
        # A merger within the tower is part of the tower's call.
        calls.extend([(module, inputs, options)] if depth == 0 else [])
        depth += module is tower

    def leave(module: nn.Module, *_: Any) -> None:
        nonlocal depth
        depth -= module is tower

    # A projector that is called by its parts alone has no call of its own: its linear layers are recorded.
    listed = [*modules, *(m for path in modules[2:] for m in path.modules() if isinstance(m, nn.Linear))]
    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in dict.fromkeys(listed)]
    hooks.append(tower.register_forward_hook(leave))
    run()
    for hook in hooks:
        hook.remove()
    # Without the linear layers of a projector that is called as a whole.
    whole = {id(m) for module, _, _ in calls for m in module.modules() if m is not module}
    kept = [call for call in calls if id(call[0]) not in whole]

    def replay() -> None:
        for module, inputs, options in kept:
            module(*inputs, **options)

    return replay


def training(name: str, args: argparse.Namespace, results: timing.Results) -> None:
    """Adds peak memory of a step against the estimate, and images a second."""
    small = args.size == "small"
    for quantize in (None, "4bit"):
        words = f"{name}, {quantize or 'LoRA in bfloat16'}, {args.batch_size} images"
        with model_on_device(name, args.device, small, quantize) as model:
            adapters = AdapterArguments(language_model="lora", tower="full", quantize=quantize)
            prepare_training(model, adapters, backbone="backbone", revision=None, dtype=torch.bfloat16)
            model.set_num_identities(751)
            freeze_unused_parameters(model)
            options = {"output_dir": "unused", "identities_per_batch": args.batch_size // 4, "images_per_identity": 4}
            arguments = ReIDTrainingArguments(**options, bf16=True, use_cpu=args.device == "cpu")
            config = MllmReIDConfig.from_dict(model.config.to_dict())
            estimate = estimate_memory(config, adapters, arguments, BatchArguments(), dtype=torch.bfloat16).total
            peak = peak_of_step(model, args)
            measured = f"{peak / 2**30:.2f} GiB, {peak / estimate:.3f} of the estimate" if peak else "not measured"
            results.add(f"peak memory of a step, {words}", f"{measured}, estimate {estimate / 2**30:.2f} GiB")
            if quantize is None:
                results.add(f"images a second, {words}", f"{images_a_second(model.eval(), args):.1f}")


@contextmanager
def model_on_device(name: str, device: str, small: bool, quantize: str | None) -> Iterator[MllmReIDModel]:
    """A model with random weights in bfloat16, made on the device; with 4 bits its language model is quantised."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            mllm = AutoModelForImageTextToText.from_config(config_of(name, small=small))
    finally:
        torch.set_default_dtype(default)
    model = MllmReIDModel.from_mllm(mllm, image_prefix_ids=PREFIX)
    if quantize:
        quantize_language_model(model, torch.bfloat16)
    yield model
    del model, mllm
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def images_a_second(model: MllmReIDModel, args: argparse.Namespace) -> float:
    """Returns the median speed of `encode_images` over five turns."""
    pixels = torch.randn(args.batch_size, 3, model.config.height, model.config.width, device=args.device)
    with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16):
        seconds = timing.alternate({"ours": lambda: model.encode_images(pixels)}, 5, args.device)["ours"]
    return args.batch_size / float(np.median(seconds))


def peak_of_step(model: MllmReIDModel, args: argparse.Namespace) -> int | None:
    """Runs two steps with the longest texts; returns the peak in bytes on a GPU, else None."""
    config, batch = model.config, args.batch_size
    images = [*PREFIX, *[config.mllm_config.image_token_id] * config.num_image_tokens, *[7] * 40]
    texts = [7] * (64 + 24 + 32)
    inputs: dict[str, Tensor] = {
        "pixel_values": torch.randn(batch, 3, config.height, config.width),
        "person_ids": torch.arange(batch) // 4,
    }
    for prefix, ids in (("", images), ("text_", texts)):
        tokens = torch.tensor([ids] * batch)
        labels = tokens.clone()
        labels[:, :-32] = -100
        inputs |= {f"{prefix}input_ids": tokens, f"{prefix}labels": labels}
        inputs[f"{prefix}attention_mask"] = torch.ones_like(tokens)
    inputs["text_caption_mask"] = torch.ones(batch, len(texts), dtype=torch.bool)
    inputs = {name: value.to(args.device) for name, value in inputs.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with torch.autocast(args.device, torch.bfloat16):
            loss = model.train()(**copy.copy(inputs)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() if args.device == "cuda" else None


if __name__ == "__main__":
    main()
