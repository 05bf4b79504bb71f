"""Models and batches for the benchmarks of encoding, training and scaling, at four sizes.

The models have random weights and are made on the device, without a file. "7b" has the configuration of LLaVA-1.5-7B;
"2b" is the same with the language model of Qwen2-VL-2B, whose heads are grouped. Their tokenizers split into whole
words, as nothing is downloaded.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlavaConfig, LlavaForConditionalGeneration

from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.batches import TrainCollator

# Name: height, width, patch size, and the sizes of the tiny LLaVA. "small" runs for about 100 ms on one core.
SIZES: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "tiny": (128, 64, 16, {"hidden_size": 64, "tower_layers": 2, "lm_layers": 2}),
    "small": (252, 126, 14, {"hidden_size": 256, "tower_layers": 6, "lm_layers": 8}),
    "2b": (252, 126, 14, {}),
    "7b": (252, 126, 14, {}),
}
# Language models of the published sizes.
LANGUAGE: dict[str, dict[str, Any]] = {
    "2b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
    },
}


def make_processor(size: str) -> MllmReIDProcessor:
    """Returns the processor of a size, with the words of rendered people's captions."""
    height, width, patch, _ = SIZES[size]
    texts = [text for person in sample_descriptions(2000, seed=0) for text in person]
    return build_processor(texts, height=height, width=width, patch_size=patch)


def make_llava(size: str, processor: MllmReIDProcessor, dtype: torch.dtype, device: str | torch.device) -> Any:
    """Returns a random LLaVA of a size in a number format, made on the device."""
    if size not in LANGUAGE:
        llava = build_tiny_llava(processor, seed=0, **SIZES[size][3])
        for parameter in llava.parameters():  # buffers, such as frequencies, stay float32
            parameter.data = parameter.data.to(dtype)
        return llava.to(device)
    config = LlavaConfig(text_config=LANGUAGE[size], image_token_index=processor.image_token_id)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)


def make_reid(
    size: str,
    dtype: torch.dtype,
    device: str | torch.device,
    adapters: AdapterArguments | None = None,
    **fields: Any,
) -> tuple[MllmReIDModel, MllmReIDProcessor]:
    """Returns a random ReID model of a size and its processor, as `load_model` does with a native LLaVA.

    Args:
        size (`str`): One of `SIZES`.
        dtype (`torch.dtype`): Format of the weights; with adapters that of the frozen ones.
        device (`str` or `torch.device`): Where the weights are made.
        adapters (`AdapterArguments`, *optional*): For training: what is trained, and the format of frozen weights.
        **fields: Configuration fields.
    """
    processor = make_processor(size)
    fields |= {"height": processor.height, "width": processor.width, "image_prefix_ids": processor.image_prefix_ids}
    model = MllmReIDModel.from_mllm(make_llava(size, processor, dtype, device), **fields)
    if adapters is not None:
        if adapters.quantize == "8bit":
            raise SystemExit("quantize 8bit: random weights are made in 4 bits alone: give --backbone")
        if adapters.quantize == "4bit":
            quantize_language_model(model, dtype)
        prepare_training(model, adapters, backbone="random", revision=None, dtype=dtype)
    return model, processor


def quantize_language_model(model: MllmReIDModel, dtype: torch.dtype) -> None:
    """Replaces the linear layers of the language model by 4-bit ones, as loading with a quantisation does."""
    import bitsandbytes as bnb

    for name, module in list(model.language_model.named_modules()):
        if type(module) is nn.Linear:
            layer = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=dtype,
                quant_type="nf4",
                compress_statistics=True,
            )
            layer.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            layer.bias = module.bias
            layer.support_avx512bf16_for_cpu = False
            model.language_model.set_submodule(name, layer.to(module.weight.device))


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
