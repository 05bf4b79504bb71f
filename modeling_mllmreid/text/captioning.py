"""Captions for images without one: a multimodal LLM writes them to a sidecar file, with their provenance."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jinja2 import TemplateError
from PIL import Image, ImageOps
from transformers import GenerationConfig

from ..data.captions import CaptionRecord, TextKey
from ..data.contract import image_sources
from ..data.images import ImageSource, open_image
from ..utils.errors import UserError
from .generation import check_generation_settings, own_random_state, ready_to_generate, special_tokens
from .sidecar import Sidecar

MIN_NEW_TOKENS = 3


def write_captions(
    mllm: Any,
    processor: Any,
    dataset_splits: Mapping[str, Dataset],
    out_path: str | os.PathLike[str],
    *,
    prompts: Sequence[str],
    captions_per_image: int = 1,
    model_name: str,
    revision: str | None,
    licence: str | None,
    max_new_tokens: int = 64,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> int:
    """Writes captions for every image without one.

    Crops are padded to squares first, because the stock processors would cut off heads and feet. Each batch is on disk
    at once, so the same call resumes a killed run. Under several processes each writes a share.

    Args:
        mllm (`PreTrainedModel`): An image-text-to-text model.
        processor (`ProcessorMixin`): Its processor, with a chat template.
        dataset_splits (`Mapping[str, Dataset]`): Splits of the data contract, by name.
        out_path (`str` or `os.PathLike`): The sidecar file.
        prompts (`Sequence[str]`): Prompts to draw from, by the seed and the image.
        captions_per_image (`int`): Number of captions of an image.
        model_name (`str`): Name of the model, for the provenance.
        revision (`str`, *optional*): Commit of the model, for the provenance.
        licence (`str`, *optional*): Licence of the model, for the provenance.
        max_new_tokens (`int`): Longest caption, in tokens.
        do_sample (`bool`): Whether to sample; the default is the likeliest text.
        temperature (`float`): Temperature of sampling.
        seed (`int`): Seed of prompts and sampling.
        batch_size (`int`): Images in a batch.
        inputs (`Sequence`): Input files; `out_path` must not be one of them.

    Returns:
        `int`: The number of captions that this call writes, over all processes.

    Raises:
        UserError: Before the first write for a setting out of range, and for a file that is no sidecar or has other
            provenance; later for a broken image and an empty caption.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    if captions_per_image < 1 or not prompts:
        raise UserError(f"captions_per_image {captions_per_image}, {len(prompts)} prompts: give at least one of each")
    if captions_per_image > 1 and not do_sample and len(prompts) < captions_per_image:
        raise UserError(f"{captions_per_image} captions of one prompt would be equal: give do_sample, or more prompts")
    provenance = {
        "model": model_name,
        "revision": revision,
        "licence": licence,
        "prompts": list(prompts),
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature if do_sample else None,
        "seed": seed,
    }
    with Sidecar(out_path, CaptionRecord, provenance, inputs) as sidecar:
        written = {record.key for record in sidecar.records}
        queue = [
            (key, source)
            for split, dataset in dataset_splits.items()
            for key, source in _missing(dataset, split, captions_per_image)
            if key not in written
        ]

        def write_batch(batch: Sequence[tuple[TextKey, ImageSource]]) -> None:
            images = [_square(open_image(source)) for _, source in batch]
            batch_prompts = [_prompt(prompts, key, seed) for key, _ in batch]
            # The random state depends on the keys of the batch, so that a resumed run writes the same texts.
            state = int.from_bytes(hashlib.sha256(repr((seed, [key for key, _ in batch])).encode()).digest()[:8], "big")
            texts = describe_images(
                mllm, processor, images, batch_prompts, max_new_tokens, temperature if do_sample else None, state
            )
            for (key, _), text in zip(batch, texts, strict=True):
                if not text:
                    raise UserError(f"{key.file_name}: the model wrote an empty caption: try another prompt or model")
            sidecar.append([CaptionRecord(*key, text, provenance) for (key, _), text in zip(batch, texts, strict=True)])

        sidecar.write(queue, batch_size, write_batch, "caption")
        return len(queue)


def describe_images(
    mllm: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
) -> list[str]:
    """Writes the model's answer to each prompt about its image.

    The generation settings of the checkpoint are not used: the provenance has every setting that a text depends on.

    Args:
        mllm (`PreTrainedModel`): An image-text-to-text model.
        processor (`ProcessorMixin`): Its processor, with a chat template.
        images (`Sequence[Image.Image]`): N images.
        prompts (`Sequence[str]`): N prompts.
        max_new_tokens (`int`): Longest answer, in tokens.
        temperature (`float`, *optional*): Temperature of sampling; None for the likeliest text.
        seed (`int`): Seed of sampling.

    Returns:
        `list[str]`: N answers, each on one line.

    Raises:
        UserError: For a processor that cannot read an image with a prompt.
    """
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}] for prompt in prompts]
    tokenizer = processor.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        inputs = processor(images=list(images), text=texts, padding=True, return_tensors="pt").to(mllm.device)
    except (ValueError, TypeError, AttributeError, KeyError, TemplateError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model: its processor cannot read an image with a prompt ({reason}): give a model whose files have "
            "a chat template and the processor's settings"
        ) from error
    finally:
        tokenizer.padding_side = side
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(mllm.dtype)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    # Only ordinary tokens, and the end of the text after the shortest length.
    unnamed = range(len(tokenizer), mllm.config.get_text_config().vocab_size)
    suppressed = [*(token for token in special_tokens(mllm, tokenizer) if token != tokenizer.eos_token_id), *unnamed]
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(MIN_NEW_TOKENS, max_new_tokens),
        suppress_tokens=suppressed,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    with ready_to_generate(mllm), torch.inference_mode(), own_random_state(mllm.device, seed):
        written = mllm.generate(**inputs, generation_config=settings)
    answers = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [" ".join(answer.split()) for answer in answers]


def _missing(dataset: Dataset, split: str, count: int) -> list[tuple[TextKey, ImageSource]]:
    """The keys of the missing captions of a split; an image with several rows counts once."""
    sources = image_sources(dataset)
    columns = (dataset[name][:] for name in ("source", "file_name", "caption"))
    images: dict[tuple[str, str], ImageSource] = {}
    for row, (source, file_name, captions) in enumerate(zip(*columns, strict=True)):
        if not captions:
            images.setdefault((source, file_name), sources[row])
    return [
        (TextKey(source, split, file_name, index), image)
        for (source, file_name), image in images.items()
        for index in range(count)
    ]


def _prompt(prompts: Sequence[str], key: TextKey, seed: int) -> str:
    """The prompt of a caption; the captions of one image have different prompts while there are enough."""
    image_seed = int.from_bytes(hashlib.sha256(repr((seed, key[:3])).encode()).digest()[:8], "big")
    order = np.random.default_rng(image_seed).permutation(len(prompts))
    return str(prompts[order[key.caption_index % len(prompts)]])


def _square(image: Image.Image) -> Image.Image:
    """The crop, centred on a grey square."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color="#7a7a7a")
