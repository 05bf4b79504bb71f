"""From rows of the data set to training batches: augmented crops, prompts and targets of both branches."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset as RowDataset
from torch import Tensor
from torch.utils.data import Dataset

from ..data.augmentation import PersonAugmentation, rng_for
from ..data.contract import image_sources, person_names
from ..data.images import open_image
from ..data.splits import label_mapping
from ..model import MllmReIDProcessor
from ..text.continuations import target_text
from ..text.instructions import instruction_texts
from ..utils.errors import UserError
from .arguments import BatchArguments

logger = logging.getLogger(__name__)


class TrainDataset(Dataset):
    """Training samples by (index, epoch, position): a pure function of these and the seed, in any worker or process.

    split: a training split of the data contract. language: whether captions and targets are needed; then an image
    without a caption counts in the ReID losses on images alone, and UserError is raised where none has a caption or a
    continuation is missing.
    """

    def __init__(
        self, split: RowDataset, processor: MllmReIDProcessor, args: BatchArguments, *, seed: int, language: bool
    ):
        self.images = image_sources(split)
        self.person_ids: list[int] = split["person_id"][:]
        self.person_names = person_names(split)
        self.camera_ids: list[int] = split["camera_id"][:]
        self.sources: list[str] = split["source"][:]
        self.file_names: list[str] = split["file_name"][:]
        mapping = label_mapping(self.person_ids)
        self.num_identities = len(mapping)
        self.labels = [mapping[person_id] for person_id in self.person_ids]
        self.processor, self.args, self.seed = processor, args, seed
        self.augmentation = PersonAugmentation(
            processor.height, processor.width, flip=args.flip, pad=args.pad, erase=args.erase
        )
        self.num_instructions = len(instruction_texts(args.instruction))
        self.texts = _texts(split, processor, args) if language else [[] for _ in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: tuple[int, int, int]) -> dict[str, Any]:
        index, epoch, position = sample
        rng = rng_for(self.seed, epoch, position, index)
        image = self.augmentation.transform_image(open_image(self.images[index]), rng)
        pixels = self.processor(images=[image])["pixel_values"][0]
        texts = self.texts[index]
        # Without a text the row has an empty caption and no target: no loss on texts reads it.
        caption, target = texts[rng.integers(len(texts))] if texts else ([], [])
        instruction = int(rng.integers(self.num_instructions)) if texts and self.num_instructions > 1 else 0
        return {
            "pixel_values": self.augmentation.erase(pixels, rng),
            "person_ids": self.labels[index],
            "instruction": instruction,
            "caption": caption,
            "target": target,
        }


def _texts(
    split: RowDataset, processor: MllmReIDProcessor, args: BatchArguments
) -> list[list[tuple[list[int], list[int]]]]:
    """For each row its (caption ids, target ids), one for each caption."""
    rows: list[list[tuple[list[int], list[int]]]] = []
    columns = (split[name][:] for name in ("file_name", "caption", "continuation"))
    for file_name, captions, continuations in zip(*columns, strict=True):
        continuations = continuations or [None] * len(captions)
        texts = []
        for caption, continuation in zip(captions, continuations, strict=True):
            try:
                prompt, target = target_text(caption, continuation, args.target)
                texts.append((processor.caption_ids(prompt), processor.target_ids(target, args.max_target_tokens)))
            except ValueError as error:
                raise UserError(f"{file_name}: {error}") from error
        rows.append(texts)
    bare = sum(not texts for texts in rows)
    if bare == len(rows):
        raise UserError("no training image has a caption: give captions, or set loss_lambda to 1 (ReID losses alone)")
    if bare:
        logger.warning(
            "%d of %d training images have no caption: they take part in the ReID losses on images alone",
            bare,
            len(rows),
        )
    return rows


class TrainCollator:
    """Samples to the model's batch: image rows, and text rows with the same instructions and targets.

    language: whether image rows carry prompts and targets. Text rows carry them with `text_branch` too; for the ReID
    losses alone (reid_text) they end with the caption.
    """

    # Whether samples must hold captions even where no loss of the model's own reads them.
    needs_captions = False

    def __init__(self, processor: MllmReIDProcessor, args: BatchArguments, *, language: bool, reid_text: bool):
        self.processor = processor
        self.language, self.text_targets = language, language and args.text_branch
        self.text_rows = self.text_targets or reid_text
        self.image_prompts = [processor.image_prompt_ids(text) for text in instruction_texts(args.instruction)]
        before = len(processor.image_prefix_ids) + processor.num_image_tokens
        self.suffixes = [prompt[before:] for prompt in self.image_prompts]

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "person_ids": torch.tensor([sample["person_ids"] for sample in samples]),
        }
        targets = [sample["target"] for sample in samples]
        if self.language:
            prompts = [self.image_prompts[sample["instruction"]] for sample in samples]
            batch |= self.processor.rows(prompts, targets)
        if self.text_rows:
            captions = [sample["caption"] for sample in samples]
            prompts = [self.processor.image_prefix_ids + caption for caption in captions]
            if self.text_targets:
                suffixes = [self.suffixes[sample["instruction"]] for sample in samples]
                prompts = [prompt + suffix for prompt, suffix in zip(prompts, suffixes, strict=True)]
            rows = self.processor.rows(prompts, targets if self.text_targets else [[] for _ in samples])
            if not self.text_targets:
                del rows["labels"]
            rows["caption_mask"] = self.processor.caption_mask(captions, rows["input_ids"].shape[1])
            batch |= {f"text_{name}": value for name, value in rows.items()}
        return batch


def label_counts(batch: dict[str, Tensor]) -> np.ndarray:
    """Target tokens of a batch in the image branch and in the text branch: an array of two counts."""
    counts = [int((batch[name][:, 1:] != -100).sum()) if name in batch else 0 for name in ("labels", "text_labels")]
    return np.array(counts)
