"""Measures the cost of an embedding relative to its bare modules.

python benchmarks/encoding.py [--size small] [--batch_size 8] [--dtype float32] [--repeats 30]

Runs `encode_images` with each feature, the vision form, and the same modules called directly as a floor. The floor of
"vision" is the tower. The floor of "llm" is tower, projector and language model over prefix and image tokens, without
the output layer. All take turns in inference mode on the same random crops. Prints ratios and images a second.
"""

import argparse

import numpy as np
import timing
import torch
from models import SIZES, make_reid
from torch import Tensor

from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor, MllmReIDVisionModel


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--backbone", help="a LLaVA that replaces the random one of this size")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    timing.add_arguments(parser, repeats=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    compare(*load(args), args)


def load(args: argparse.Namespace) -> tuple[MllmReIDModel, Tensor]:
    """Returns the model with its heads, and random crops."""
    (height, width), dtype = SIZES[args.size][:2], getattr(torch, args.dtype)
    if args.backbone is None:
        model = make_reid(args.size, dtype, args.device)[0]
    else:
        processor = MllmReIDProcessor.from_mllm_pretrained(args.backbone, height=height, width=width)
        fields = {"height": height, "width": width, "image_prefix_ids": processor.image_prefix_ids}
        model = MllmReIDModel.from_mllm_pretrained(args.backbone, dtype=dtype, **fields)
    model = model.to(args.device).eval()
    return model, torch.randn(args.batch_size, 3, height, width, device=args.device)


def compare(model: MllmReIDModel, pixels: Tensor, args: argparse.Namespace) -> None:
    """Times all functions in turns and prints the ratios."""
    form = MllmReIDVisionModel.from_reid_model(model)
    tower_pixels = pixels.to(form.tower.dtype)
    functions = {
        "floor_form": lambda: form.tower(tower_pixels, interpolate_pos_encoding=True),
        "form": lambda: form.encode_images(pixels),
        "floor_vision": lambda: model.mllm.model.vision_tower(tower_pixels, interpolate_pos_encoding=True),
        "vision": lambda: model.image_features(pixels, ("vision",)),
        "floor_llm": lambda: bare_language_model(model, tower_pixels),
        "llm": lambda: model.image_features(pixels, ("llm",)),
        "both": lambda: model.image_features(pixels),
        "floor_again": lambda: form.tower(tower_pixels, interpolate_pos_encoding=True),
    }
    with torch.inference_mode():
        seconds = timing.alternate(functions, args.repeats, args.device)
    results, setting = timing.Results(args), f"{args.size}, batch {args.batch_size}, {args.dtype}"
    # The difference from 1 is the noise of the machine.
    results.ratio(f"bare tower / itself ({setting})", seconds["floor_again"], seconds["floor_form"])
    results.ratio(f"vision form / bare tower ({setting})", seconds["form"], seconds["floor_form"], 1.05)
    results.ratio(f"encode_images, vision / bare tower ({setting})", seconds["vision"], seconds["floor_vision"], 1.05)
    results.ratio(f"encode_images, llm / bare tower + LLM ({setting})", seconds["llm"], seconds["floor_llm"], 1.05)
    results.ratio(f"encode_images, concat / bare tower + LLM ({setting})", seconds["both"], seconds["floor_llm"], 1.05)
    for name, feature in (("form", "vision form"), ("vision", "vision"), ("llm", "llm"), ("both", "concat")):
        results.add(f"images a second, {feature} ({setting})", f"{args.batch_size / np.median(seconds[name]):.1f}")
    results.append()


def bare_language_model(model: MllmReIDModel, pixels: Tensor) -> Tensor:
    """Runs tower, projector and language model on prefix and image tokens: (B, 3, H, W) to (B, T, D)."""
    llava, config = model.mllm.model, model.config.mllm_config
    layer = config.vision_feature_layer
    states = llava.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=[layer]).hidden_states
    image = llava.multi_modal_projector(states[layer][:, 1:])
    prefix = model.get_input_embeddings()(torch.tensor([model.config.image_prefix_ids], device=pixels.device))
    sequences = torch.cat([prefix.expand(len(image), -1, -1), image], dim=1)
    return llava.language_model(inputs_embeds=sequences, use_cache=False).last_hidden_state


if __name__ == "__main__":
    main()
