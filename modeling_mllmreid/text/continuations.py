"""Continuations of captions: written once by the frozen language model, kept in the sidecar, used as targets."""

import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence

from datasets import Dataset
from transformers import LlavaForConditionalGeneration

from ..data.captions import TextKey, TextRecord, missing_captions
from ..model import MllmReIDProcessor
from ..utils.errors import UserError
from .generation import check_generation_settings, generate_texts
from .sidecar import Sidecar

TARGET_MODES = ("continuation", "caption", "split")


def write_continuations(
    mllm: LlavaForConditionalGeneration,
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
    """Writes a continuation for every caption that the sidecar has none for; returns how many records were appended.

    dataset_splits: splits of the data contract by name. instruction: the instruction's text. model_name, revision,
    licence: of `mllm`, kept as provenance with the prompt and the settings. Records are on disk batch by batch, so
    a killed run is resumed by the same call. Identical captions are generated once. inputs: files that are read; none
    of them may be `out_path`.
    Raises UserError, before anything is written: the file holds anything else than such records, was written otherwise
    or for other captions, a caption holds an image token, the path cannot be written, a setting is out of range.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    provenance = {
        "model": model_name,
        "revision": revision,
        "licence": licence,
        "instruction": instruction,
        "prompt": processor.prompt_prefix + "{caption}" + processor.prompt_suffix.format(instruction=instruction),
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature if do_sample else None,
        "seed": seed if do_sample else None,
    }
    # Before the file is made: a caption that cannot be read must leave nothing behind.
    for split, dataset in dataset_splits.items():
        for key, caption in missing_captions(dataset, split, []):
            _prompt_ids(processor, key, caption, instruction)
    with Sidecar(out_path, TextRecord, provenance, inputs) as sidecar:
        missing: dict[str, list[TextKey]] = {}
        for split, dataset in dataset_splits.items():
            for key, caption in missing_captions(dataset, split, sidecar.records):
                missing.setdefault(caption, []).append(key)
        known = {record.caption: record.continuation for record in sidecar.records if record.caption in missing}
        prompts = {
            caption: _prompt_ids(processor, keys[0], caption, instruction)
            for caption, keys in missing.items()
            if caption not in known
        }

        def append(continuations: Mapping[str, str]) -> None:
            sidecar.append(
                [
                    TextRecord(*key, caption=caption, continuation=continuation, provenance=provenance)
                    for caption, continuation in continuations.items()
                    for key in missing[caption]
                ]
            )

        def write_batch(captions: Sequence[str]) -> None:
            texts = generate_texts(
                mllm,
                processor.tokenizer,
                [prompts[caption] for caption in captions],
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                temperature=temperature,
                seed=seed,
                batch_size=batch_size,
            )
            append(dict(zip(captions, texts, strict=True)))

        if sidecar.state.is_main_process:
            append(known)
        # The engine's own order, over all captions: whole batches of like length, and after a resume the same batches.
        queue = sorted(prompts, key=lambda caption: len(prompts[caption]), reverse=True)
        sidecar.write(queue, batch_size, write_batch, "continuation")
        return sum(map(len, missing.values()))


def target_text(caption: str, continuation: str | None, mode: str) -> tuple[str, str]:
    """The text branch's prompt caption and the target that both branches share.

    mode: "continuation", what the language model wrote after the caption; "caption", the caption itself; "split", the
    caption's second part after its first part, cut at the middle word (the first part gets the odd one).
    Raises UserError for another mode, for a continuation that is not there, and for a caption too short to split.
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
    """Mean share of a caption's attribute words that its continuation keeps, 0 to 1.

    attribute_words: the attribute words of a text. Captions without any are left out; NaN where all are.
    """
    shares = [
        len(words & attribute_words(continuation)) / len(words)
        for caption, continuation in zip(captions, continuations, strict=True)
        if (words := attribute_words(caption))
    ]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _prompt_ids(processor: MllmReIDProcessor, key: TextKey, caption: str, instruction: str) -> list[int]:
    try:
        return processor.text_prompt_ids(caption, instruction)
    except ValueError as error:
        raise UserError(
            f"caption {key.caption_index} of {key.file_name} ({key.source}, {key.split}): {error}"
        ) from error
