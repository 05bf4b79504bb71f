"""Captions for images without one: a multimodal LLM writes them to a sidecar file, with their provenance."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps

from ..data.captions import CaptionRecord, TextKey
from ..data.contract import image_sources
from ..data.images import ImageSource, open_image
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.backbone import Backbone
from ..utils.errors import UserError
from .endpoint import Endpoint, Question
from .generation import (
    check_generation_settings,
    decoded,
    generation_settings,
    own_random_state,
    random_state,
    ready_to_generate,
    special_tokens,
    up_to_end,
)
from .sidecar import Sidecar

# Pixels of a square's side for a vision tower that has no size of its own.
DEFAULT_SIDE = 448
# Of the texts of `describe_crops`; a caption of a person has 20 to 40 tokens.
DESCRIPTION_TOKENS, DESCRIPTION_BATCH = 48, 64


class MissingCaption(NamedTuple):
    """A caption to write: its key, its image and the prompt."""

    key: TextKey
    source: ImageSource
    prompt: str


def caption_side(backbone: Backbone) -> int:
    """Returns the side in pixels of the squares that a multimodal LLM describes: that of its tower's own images.

    Args:
        backbone (`Backbone`): The multimodal LLM's family and configuration.

    Returns:
        `int`: A multiple of the side of an image token.
    """
    side = getattr(backbone.config.vision_config, "image_size", DEFAULT_SIDE)
    side = side[0] if isinstance(side, list | tuple) else side
    return int(max(1, side // backbone.unit) * backbone.unit)


def write_captions(
    model: MllmReIDModel | Endpoint,
    processor: MllmReIDProcessor | None,
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

    Crops are padded to squares, the shape of the images that multimodal LLMs are trained on. Each batch is on disk at
    once, so the same call resumes a killed run. Under several processes each writes a share.

    Args:
        model (`MllmReIDModel` or [`Endpoint`]): A native multimodal LLM in our model, for square images (see
            [`caption_side`]), or an engine that serves one.
        processor (`MllmReIDProcessor`, *optional*): The processor of a model in this process.
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
        batch_size (`int`): Images in a batch of a model in this process.
        inputs (`Sequence`): Input files; `out_path` must not be one of them.

    Returns:
        `int`: The number of captions that this call writes, over all processes.

    Raises:
        UserError: Before the first write for a setting out of range, and for a file that is no sidecar or has other
            provenance; later for a broken image, an empty caption and an engine that fails.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    if captions_per_image < 1 or not prompts:
        raise UserError(f"captions_per_image {captions_per_image}, {len(prompts)} prompts: give at least one of each")
    if captions_per_image > 1 and not do_sample and len(prompts) < captions_per_image:
        raise UserError(f"{captions_per_image} captions of one prompt would be equal: give do_sample, or more prompts")
    provenance: dict[str, Any] = {
        "model": model_name,
        "revision": revision,
        "licence": licence,
        "prompts": list(prompts),
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature if do_sample else None,
        "seed": seed,
    }
    if isinstance(model, Endpoint):
        provenance |= model.provenance
        texts_of = partial(_engine_captions, model)
    else:
        assert processor is not None
        texts_of = partial(_model_captions, model, processor)
    with Sidecar(out_path, CaptionRecord, provenance, inputs) as sidecar:
        written = {record.key for record in sidecar.records}
        queue = [
            MissingCaption(key, source, _prompt(prompts, key, seed))
            for split, dataset in dataset_splits.items()
            for key, source in _missing(dataset, split, captions_per_image)
            if key not in written
        ]
        # Equal prompts share a batch, which then needs no padding.
        queue.sort(key=lambda missing: missing.prompt)

        sidecar.write(
            queue,
            batch_size,
            lambda batches: texts_of(batches, max_new_tokens, temperature if do_sample else None, seed),
            lambda missing, text: [CaptionRecord(*missing.key, text, provenance)],
            "caption",
        )
        return len(queue)


def _model_captions(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    batches: list[Sequence[MissingCaption]],
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
) -> Iterator[list[tuple[MissingCaption, str]]]:
    """Yields the captions of each batch by a model in this process."""
    for batch in batches:
        texts: list[str] = []
        for prompt, group in groupby(batch, key=lambda missing: missing.prompt):
            same = list(group)
            images = [_square(open_image(missing.source)) for missing in same]
            state = random_state(seed, [missing.key for missing in same])
            texts += describe_images(model, processor, images, prompt, max_new_tokens, temperature, state)
        for missing, text in zip(batch, texts, strict=True):
            if not text:
                raise UserError(
                    f"{missing.key.file_name}: the model wrote an empty caption: try another prompt or model"
                )
        yield list(zip(batch, texts, strict=True))


def _engine_captions(
    endpoint: Endpoint,
    batches: list[Sequence[MissingCaption]],
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
) -> Iterator[list[tuple[MissingCaption, str]]]:
    """Yields captions by an engine, which makes its own batches."""

    def question_of(missing: MissingCaption) -> Question:
        image = _square(open_image(missing.source))
        state = random_state(seed, [missing.key])
        return Question(missing.key.file_name, missing.prompt, image, state)

    return endpoint.answers(
        chain.from_iterable(batches), question_of, _one_line, max_new_tokens=max_new_tokens, temperature=temperature
    )


def describe_images(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    images: Sequence[Image.Image],
    prompt: str,
    max_new_tokens: int,
    temperature: float | None,
    seed: int,
) -> list[str]:
    """Writes the model's answer to a prompt about each image.

    The generation settings of the checkpoint are not used, apart from its end-of-text tokens: the provenance has every
    setting that a text depends on.

    Args:
        model (`MllmReIDModel`): The model.
        processor (`MllmReIDProcessor`): Its processor.
        images (`Sequence[Image.Image]`): N images.
        prompt (`str`): The prompt, the instruction of the image template.
        max_new_tokens (`int`): Longest answer, in tokens.
        temperature (`float`, *optional*): Temperature of sampling; None for the likeliest text.
        seed (`int`): Seed of sampling.

    Returns:
        `list[str]`: N answers, each on one line.
    """
    tokenizer, mllm = processor.tokenizer, model.mllm
    settings = generation_settings(mllm, tokenizer, max_new_tokens, temperature)
    special = special_tokens(mllm, tokenizer)
    ids = torch.tensor([processor.image_prompt_ids(prompt)] * len(images))
    pixels = processor(images=list(images))["pixel_values"]
    with ready_to_generate(mllm), torch.inference_mode(), own_random_state(model.device, seed):
        written = model.generate(ids, pixels, attention_mask=torch.ones_like(ids), generation_config=settings)
    answers = (decoded(tokenizer, up_to_end(answer, settings.eos_token_id), special) for answer in written.tolist())
    return [_one_line(answer) for answer in answers]


def describe_crops(model: MllmReIDModel, processor: MllmReIDProcessor, images: Sequence[Image.Image]) -> list[str]:
    """Writes the model's likeliest text about each crop, after the instruction that it was trained with.

    A training on targets that are cut teaches no end of a text, so a model may go on in the middle of a sentence or
    repeat itself: whole sentences are kept, each once.

    Args:
        model (`MllmReIDModel`): A model; a training with the language loss taught it what to write.
        processor (`MllmReIDProcessor`): Its processor.
        images (`Sequence[Image.Image]`): N crops.

    Returns:
        `list[str]`: N texts.
    """
    texts: list[str] = []
    for start in range(0, len(images), DESCRIPTION_BATCH):
        batch = images[start : start + DESCRIPTION_BATCH]
        texts += describe_images(model, processor, batch, processor.instruction, DESCRIPTION_TOKENS, None, 0)
    return list(map(whole_sentences, texts))


def whole_sentences(text: str) -> str:
    """Returns the whole sentences of a text, each once; a text without a whole sentence as it is."""
    sentences = re.findall(r"\S.*?[.!?](?=\s|$)", text)
    return " ".join(dict.fromkeys(sentences)) if sentences else text


def _one_line(text: str) -> str:
    return " ".join(text.split())


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
    order = np.random.default_rng(random_state(seed, key[:3])).permutation(len(prompts))
    return str(prompts[order[key.caption_index % len(prompts)]])


def _square(image: Image.Image) -> Image.Image:
    """The crop, centred on a grey square."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color="#7a7a7a")
