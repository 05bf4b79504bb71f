"""Continuations of captions: the frozen language model writes them once, training uses them as targets."""

import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from datasets import Dataset

from ..data.captions import TextKey, TextRecord, missing_captions
from ..model import MllmReIDProcessor
from ..utils.errors import UserError
from .endpoint import Endpoint, Question
from .generation import (
    check_generation_settings,
    end_tokens,
    generate_texts,
    random_state,
    tokenizer_special_tokens,
    without,
)
from .sidecar import Sidecar

# A continuation, the ids that were written, and the digest of their tokenizer.
Written = tuple[str, list[int] | None, str | None]
TARGET_MODES = ("continuation", "caption", "split")


def write_continuations(
    mllm: Any,
    processor: MllmReIDProcessor,
    dataset_splits: Mapping[str, Dataset],
    out_path: str | os.PathLike[str],
    *,
    instruction: str,
    model_name: str,
    revision: str | None,
    licence: str | None = None,
    max_new_tokens: int = 32,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> int:
    """Writes a continuation of every caption that has none in the sidecar file.

    Each batch is on disk at once, so the same call resumes a killed run. Equal captions are continued once. A
    continuation ends where the model ends it. The ids that a model in this process wrote are in the file too.

    Args:
        mllm (`PreTrainedModel` or [`Endpoint`]): The frozen multimodal LLM, whose language model writes, or an engine
            that serves it. An engine's texts have no ids.
        processor (`MllmReIDProcessor`): The processor, for the prompts.
        dataset_splits (`Mapping[str, Dataset]`): Splits of the data contract, by name.
        out_path (`str` or `os.PathLike`): The sidecar file.
        instruction (`str`): Text of the instruction.
        model_name (`str`): Name of the model, for the provenance.
        revision (`str`, *optional*): Commit of the model, for the provenance.
        licence (`str`, *optional*): Licence of the model, for the provenance.
        max_new_tokens (`int`): Longest continuation, in tokens.
        do_sample (`bool`): Whether to sample; the default is greedy.
        temperature (`float`): Temperature of sampling.
        seed (`int`): Seed of sampling.
        batch_size (`int`): Captions in a batch of a model in this process.
        inputs (`Sequence`): Input files; `out_path` must not be one of them.

    Returns:
        `int`: The number of records that this call appends, over all processes.

    Raises:
        UserError: Before the first write, for a setting out of range, a caption with a special token, a path that
            cannot be written, and a file that is no sidecar, has other provenance or belongs to other captions. Later
            for an engine that fails.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    provenance: dict[str, Any] = {
        "model": model_name,
        "revision": revision,
        "licence": licence,
        "instruction": instruction,
        "prompt": processor.text_template.replace("{instruction}", instruction),
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature if do_sample else None,
        "seed": seed if do_sample else None,
    }
    if isinstance(mllm, Endpoint):
        provenance |= mllm.provenance
    # Texts of a model without an end-of-text token are those of earlier versions.
    elif ends := sorted(end_tokens(mllm, processor.tokenizer).values()):
        provenance["end_of_text"] = ends
    # Before the file exists: a caption that cannot be encoded must leave no file behind.
    for split, dataset in dataset_splits.items():
        for key, caption in missing_captions(dataset, split, []):
            _prompt_ids(processor, key, caption, instruction)
    with Sidecar(out_path, TextRecord, provenance, inputs) as sidecar:
        missing: dict[str, list[TextKey]] = {}
        for split, dataset in dataset_splits.items():
            for key, caption in missing_captions(dataset, split, sidecar.records):
                missing.setdefault(caption, []).append(key)
        known = {
            record.caption: (record.continuation, record.ids, record.tokenizer)
            for record in sidecar.records
            if record.caption in missing
        }
        prompts = {
            caption: _prompt_ids(processor, keys[0], caption, instruction)
            for caption, keys in missing.items()
            if caption not in known
        }

        def records_of(caption: str, written: Written) -> list[TextRecord]:
            text, ids, digest = written
            return [TextRecord(*key, caption, text, provenance, ids, digest) for key in missing[caption]]

        tokenizer = processor.vocabulary_digest

        def model_texts(batches: list[Sequence[str]]) -> Iterator[list[tuple[str, Written]]]:
            for batch in batches:
                texts = generate_texts(
                    mllm,
                    processor.tokenizer,
                    [prompts[caption] for caption in batch],
                    max_new_tokens=max_new_tokens,
                    do_sample=do_sample,
                    temperature=temperature,
                    seed=seed,
                    batch_size=batch_size,
                )
                yield [(caption, (*text, tokenizer)) for caption, text in zip(batch, texts, strict=True)]

        def engine_texts(batches: list[Sequence[str]]) -> Iterator[list[tuple[str, Written]]]:
            # The chat that the templates of a multimodal LLM are made of; the engine applies the same chat template.
            special = {processor.image_token, *tokenizer_special_tokens(processor.tokenizer).values()}
            answers = mllm.answers(
                chain.from_iterable(batches),
                lambda caption: Question(
                    _name(missing[caption][0]), f"{caption}\n{instruction}", None, random_state(seed, caption)
                ),
                partial(without, special),
                max_new_tokens=max_new_tokens,
                temperature=temperature if do_sample else None,
            )
            for texts in answers:
                yield [(caption, (text, None, None)) for caption, text in texts]

        if sidecar.state.is_main_process:
            sidecar.append([record for caption, text in known.items() for record in records_of(caption, text)])
        # Longest first, as `generate_texts` sorts: batches of similar length, and the same batches after a resume.
        queue = sorted(prompts, key=lambda caption: len(prompts[caption]), reverse=True)
        texts_of = engine_texts if isinstance(mllm, Endpoint) else model_texts
        sidecar.write(queue, batch_size, texts_of, records_of, "continuation")
        return sum(map(len, missing.values()))


def target_text(caption: str, continuation: str | None, mode: str) -> tuple[str, str]:
    """Returns the prompt caption of the text branch, and the target that both branches share.

    Args:
        caption (`str`): The caption.
        continuation (`str`, *optional*): Its continuation.
        mode (`str`): The target: "continuation"; "caption", the caption itself; or "split", the second half of the
            caption after its first half, cut at the middle word (the first half gets the odd one).

    Returns:
        `tuple[str, str]`: Prompt caption and target.

    Raises:
        UserError: For another mode, a missing continuation, and a caption that is too short to split.

    Example:

    ```python
    >>> target_text("a man in a red coat", None, "split")
    ('a man in', 'a red coat')
    ```
    """
    if mode == "continuation":
        if continuation is None:
            raise UserError(
                f"caption {caption[:60]!r} has no continuation: run the continuations command, or set the target to "
                "'caption' or 'split'"
            )
        return caption, continuation
    if mode == "caption":
        return caption, caption
    if mode == "split":
        words = caption.split()
        if len(words) < 2:
            raise UserError(f"caption {caption[:60]!r} is too short to split: set the target to 'caption'")
        middle = (len(words) + 1) // 2
        return " ".join(words[:middle]), " ".join(words[middle:])
    nearest = difflib.get_close_matches(mode.lower(), TARGET_MODES, n=1, cutoff=0)[0]
    raise UserError(f"target {mode!r} is unknown, nearest is {nearest!r}: give one of {', '.join(TARGET_MODES)}")


def kept_attribute_share(
    captions: Sequence[str], continuations: Sequence[str], attribute_words: Callable[[str], set[str]]
) -> float:
    """Computes the mean share of a caption's attribute words that its continuation keeps.

    Args:
        captions (`Sequence[str]`): N captions.
        continuations (`Sequence[str]`): N continuations.
        attribute_words (`Callable[[str], set[str]]`): Returns the attribute words of a text.

    Returns:
        `float`: From 0 to 1; captions without attribute words do not count. NaN if no caption counts.
    """
    shares = [
        len(words & attribute_words(continuation)) / len(words)
        for caption, continuation in zip(captions, continuations, strict=True)
        if (words := attribute_words(caption))
    ]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _prompt_ids(processor: MllmReIDProcessor, key: TextKey, caption: str, instruction: str) -> list[int]:
    """The ids of a prompt. Raises UserError naming the caption."""
    try:
        return processor.text_prompt_ids(caption, instruction)
    except ValueError as error:
        raise UserError(f"{_name(key)}: {error}") from error


def _name(key: TextKey) -> str:
    """A caption in messages."""
    return f"caption {key.caption_index} of {key.file_name} ({key.source}, {key.split})"
