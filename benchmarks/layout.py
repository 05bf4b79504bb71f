"""Measures convolutional encoders with the channels last in memory, as they run on a CPU, against the plain layout.

python benchmarks/layout.py [--batch_size 64] [--repeats 10]

step    forward and backward pass of a training step, in float32 and with bfloat16 autocast.
encode  `encode_images` in float32.

Both layouts have the same weights and take turns in one run.
"""

import argparse
import copy
from functools import partial

import timing
import torch
from torch import Tensor
from transformers import AutoConfig

from modeling_mllmreid.model import MllmReIDVisionConfig, MllmReIDVisionModel
from modeling_mllmreid.training.encoder_training import use_fast_layout

IDENTITIES = 1000
ENCODERS = {
    "pedestrians-small": ("reid_resnet", {"width": 24, "blocks": [2] * 4, "non_local": [0] * 4, "ibn": True}),
    "OSNet x0.5": ("reid_osnet", {"channels": [32, 128, 192, 256]}),
    "ResNet-18": ("resnet", {"hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4, "layer_type": "basic"}),
}


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    timing.add_arguments(parser, repeats=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = timing.Results(args)
    for name, (kind, fields) in ENCODERS.items():
        compare(name, AutoConfig.for_model(kind, **fields), args, results)
    results.append()


def compare(name: str, encoder: AutoConfig, args: argparse.Namespace, results: timing.Results) -> None:
    """Times both layouts of an encoder in turns."""
    config = MllmReIDVisionConfig(vision_config=encoder, height=128, width=64, num_identities=IDENTITIES)
    plain = MllmReIDVisionModel(config)
    fast = copy.deepcopy(plain)
    use_fast_layout(fast, torch.device("cpu"))
    crops, people = torch.randn(args.batch_size, 3, 128, 64), torch.arange(args.batch_size) // 4
    setting = f"{name}, batch {args.batch_size}"
    for title, bf16 in (("float32", False), ("bfloat16 autocast", True)):
        models = {"plain": plain.train(), "fast": fast.train()}
        steps = {key: partial(step, model, crops, people, bf16) for key, model in models.items()}
        seconds = timing.alternate(steps, args.repeats, "cpu")
        results.ratio(f"step, channels last / plain ({setting}, {title})", seconds["fast"], seconds["plain"], 1.0)
    models = {"plain": plain.eval(), "fast": fast.eval()}
    with torch.inference_mode():
        encodings = {key: partial(model.encode_images, crops) for key, model in models.items()}
        seconds = timing.alternate(encodings, args.repeats, "cpu")
    results.ratio(f"encode, channels last / plain ({setting}, float32)", seconds["fast"], seconds["plain"], 1.0)


def step(model: MllmReIDVisionModel, crops: Tensor, people: Tensor, bf16: bool) -> None:
    """Runs forward and backward pass of a training step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(pixel_values=crops, person_ids=people).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
