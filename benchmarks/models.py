"""Models and batches for the benchmarks of encoding, training and scaling, at three sizes.

python benchmarks/models.py --size 7b --output FOLDER

Writes a LLaVA with random weights and its processor. The option `--backbone` of the other benchmarks reads it.
"7b" has the configuration of LLaVA-1.5-7B, in bfloat16, and is made on the GPU if there is one. Its tokenizer splits
into whole words, as nothing is downloaded.
"""

import argparse
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlavaConfig, LlavaForConditionalGeneration

from modeling_mllmreid.model import MllmReIDProcessor
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.training.batches import TrainCollator

# Name: height, width, patch size, and the sizes of the tiny LLaVA. "small" runs for about 100 ms on one core.
SIZES: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "tiny": (128, 64, 16, {"hidden_size": 64, "tower_layers": 2, "lm_layers": 2}),
    "small": (252, 126, 14, {"hidden_size": 256, "tower_layers": 6, "lm_layers": 8}),
    "7b": (252, 126, 14, {}),
}
VICUNA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32064}


def main() -> None:
    """Writes a model of the size of `--size`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    write_llava(args.size, args.output)


def write_llava(size: str, folder: Path) -> None:
    """Writes a random LLaVA of a size, with its processor, as a native checkpoint."""
    height, width, patch, shape = SIZES[size]
    texts = [text for person in sample_descriptions(2000, seed=0) for text in person]
    processor = build_processor(texts, height=height, width=width, patch_size=patch)
    if size == "7b":
        text_config = {"model_type": "llama", "num_attention_heads": 32, **VICUNA}
        config = LlavaConfig(text_config=text_config, image_token_index=processor.image_token_id)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                llava = LlavaForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(default)
    else:
        llava = build_tiny_llava(processor, seed=0, **shape)
    llava.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)


def make_batches(
    processor: MllmReIDProcessor,
    collator: TrainCollator,
    people: int,
    images: int,
    *,
    target_tokens: int,
    count: int = 4,
) -> list[dict[str, Tensor]]:
    """Makes `count` batches of people x images samples: random pixels, captions of rendered people, continuations.

    A continuation holds the other captions of the same view, cut to `target_tokens`, as in the pretraining of the tiny
    LLaVA.
    """
    rng = torch.Generator().manual_seed(0)
    described = iter(sample_descriptions(people * images * count, seed=1))
    batches = []
    for _ in range(count):
        samples: list[dict[str, Any]] = []
        for index in range(people * images):
            first, *others = next(described)
            samples.append(
                {
                    "pixel_values": torch.randn(3, processor.height, processor.width, generator=rng),
                    "person_ids": index // images,
                    "instruction": 0,
                    "caption": first,
                    "target": processor.target_ids(" ".join([*others, first]), target_tokens),
                }
            )
        batches.append(collator(samples))
    return batches


class Prepared(Dataset):
    """A dataset without content for the P x K sampler; `collate` returns the prepared batches in turn."""

    def __init__(self, batches: list[dict[str, Tensor]], people: int, images: int):
        self.person_ids = [int(person) for person in np.tile(np.arange(people), images)]
        self.person_names = [str(person) for person in self.person_ids]
        self.camera_ids = [-1] * len(self.person_ids)
        self.sources = ["prepared"] * len(self.person_ids)
        self._next: Iterator[dict[str, Tensor]] = cycle(batches)

    def __len__(self) -> int:
        return len(self.person_ids)

    def __getitem__(self, sample: tuple[int, int, int]) -> tuple[int, int, int]:
        return sample

    def collate(self, samples: list[tuple[int, int, int]]) -> dict[str, Tensor]:
        """Returns the next batch and ignores the samples."""
        return dict(next(self._next))


def useful_tokens(batch: dict[str, Tensor]) -> int:
    """Returns the number of tokens of both branches without padding."""
    return sum(int(batch[name].sum()) for name in ("attention_mask", "text_attention_mask") if name in batch)


if __name__ == "__main__":
    main()
