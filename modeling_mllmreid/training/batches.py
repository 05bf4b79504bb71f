"""Training batches: augmented crops, prompts and targets of the image branch and the text branch."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import torch
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
from .batch_arguments import BatchArguments
from .pixels import CropPixels

logger = logging.getLogger(__name__)

# A caption, and the token ids of its target.
CaptionAndTarget = tuple[str, list[int]]


class TrainDataset(Dataset[dict[str, Any]]):
    """The training samples of a split.

    `PKSampler` indexes the dataset with (index, epoch, position). A sample depends only on these three numbers and the
    seed, in every worker and process. With an index alone, as in any loader of torch, torch's generator draws the
    augmentation. An image without a caption takes part in the ReID losses on images alone.

    Args:
        split (`datasets.Dataset`): Training split with the columns of the data contract.
        processor (`MllmReIDProcessor` or `MllmReIDVisionProcessor`): Resizes the crops and tokenizes the targets.
        args (`BatchArguments`): Texts and augmentation.
        seed (`int`): Seed of the augmentation and of the choice of captions.
        language (`bool`): Whether the samples need captions and targets.

    Raises:
        UserError: With `language`, no image has a caption, or a continuation is missing.

    Example:
        >>> from datasets import Dataset
        >>> from PIL import Image
        >>> from modeling_mllmreid import BatchArguments, TrainDataset
        >>> from modeling_mllmreid.research.tiny_llava import build_processor
        >>> processor = build_processor(["a red coat"], height=64, width=32, patch_size=16)
        >>> people = {"person_id": [7, 9], "camera_id": [0, 1], "source": ["mine", "mine"]}
        >>> images = {"image": [Image.new("RGB", (40, 90))] * 2, "file_name": ["7.png", "9.png"]}
        >>> samples = TrainDataset(
        ...     Dataset.from_dict({**images, **people}), processor, BatchArguments(), seed=0, language=False
        ... )
        >>> sample = samples[1, 0, 0]
        >>> sample["pixel_values"].shape, sample["person_ids"]
        (torch.Size([3, 64, 32]), 1)
    """

    def __init__(self, split: datasets.Dataset, processor: Any, args: BatchArguments, *, seed: int, language: bool):
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
            processor.height,
            processor.width,
            flip=args.flip,
            pad=args.pad,
            erase=args.erase,
            color_jitter=args.color_jitter,
            downscale=args.downscale,
        )
        self.crop_pixels = CropPixels(processor)
        self.num_instructions = len(instruction_texts(args.instruction))
        self.texts = _texts_and_targets(split, processor, args) if language else [[] for _ in self.images]
        # Whether the language loss reads only some of the images.
        self.partial = language and (args.language_share < 1 or not all(self.texts))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int, int]) -> dict[str, Any]:
        """Returns the sample of (index, epoch, position), or of an index.

        Returns:
            `dict`: `pixel_values` (3, height, width) float32, `person_ids` (the label, 0 to `num_identities` - 1),
            `camera_ids`, `instruction` (index of the prompt), `caption` (the text), and `target` (its token ids); the
            last two are empty without a caption. The target is empty too outside of `language_share`. With such
            samples in the training, `language_row` is whether there is a target.
        """
        index, epoch, position = key if isinstance(key, tuple) else (key, int(torch.randint(2**31, ())), key)
        rng = rng_for(self.seed, epoch, position, index)
        image = self.augmentation.transform_image(open_image(self.images[index]), rng)
        pixels = self.crop_pixels(image)
        texts = self.texts[index]
        caption, target = texts[rng.integers(len(texts))] if texts else ("", [])
        share = self.args.language_share
        if int((position + 1) * share) == int(position * share):
            target = []
        instruction = int(rng.integers(self.num_instructions)) if texts and self.num_instructions > 1 else 0
        sample = {
            "pixel_values": torch.from_numpy(self.augmentation.erase(pixels, rng, in_place=True)),
            "person_ids": self.labels[index],
            "camera_ids": self.camera_ids[index],
            "instruction": instruction,
            "caption": caption,
            "target": target,
        }
        return {**sample, "language_row": bool(target)} if self.partial else sample


def _texts_and_targets(
    split: datasets.Dataset, processor: MllmReIDProcessor, args: BatchArguments
) -> list[list[CaptionAndTarget]]:
    """Returns the captions and the tokenized targets of each image.

    A continuation has the ids that the language model wrote: its text may have other ids.
    """
    texts_by_image: list[list[CaptionAndTarget]] = []
    written = WrittenIds(split, processor)
    columns = (split[name][:] for name in ("file_name", "caption", "continuation"))
    for row, (file_name, captions, continuations) in enumerate(zip(*columns, strict=True)):
        continuations = continuations or [None] * len(captions)
        texts = []
        for number, (caption, continuation) in enumerate(zip(captions, continuations, strict=True)):
            try:
                prompt, target = target_text(caption, continuation, args.target)
                processor.check_text(prompt)
                ids = written.of(row, number, target) if args.target == "continuation" else None
                ids = processor.target_ids(target) if ids is None else ids
                texts.append((prompt, ids[: args.max_target_tokens]))
            except ValueError as error:
                raise UserError(f"{file_name}: {error}") from error
        texts_by_image.append(texts)
    uncaptioned = sum(not texts for texts in texts_by_image)
    if uncaptioned == len(texts_by_image):
        raise UserError("no training image has a caption: give captions, or set loss_lambda to 1 (ReID losses alone)")
    if uncaptioned:
        logger.warning(
            "%d of %d training images have no caption: they take part in the ReID losses on images alone",
            uncaptioned,
            len(texts_by_image),
        )
    if written.refused:
        logger.warning(
            "%d continuations have ids of another tokenizer or another text: their texts are tokenized instead",
            written.refused,
        )
    return texts_by_image


class WrittenIds:
    """The ids that a language model wrote for the continuations of a split.

    Args:
        split (`datasets.Dataset`): Training split, with the columns of the ids or without.
        processor (`MllmReIDProcessor`): Its tokenizer must be that of the ids.
    """

    def __init__(self, split: datasets.Dataset, processor: MllmReIDProcessor):
        self.tokenizer, self.refused = processor.tokenizer, 0
        names = ("continuation_ids", "continuation_tokenizer")
        columns = [split[name][:] for name in names] if {*names} <= {*split.column_names} else [[], []]
        # By row and number of the continuation: its ids, and the digest of their tokenizer.
        self.written = {
            (row, number): pair
            for row, (ids, digests) in enumerate(zip(*columns, strict=True))
            for number, pair in enumerate(zip(ids or [], digests or [], strict=False))
        }
        self.digest = processor.vocabulary_digest if self.written else ""
        self.special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}

    def of(self, row: int, number: int, text: str) -> list[int] | None:
        """Returns the ids of a continuation, or None if it has none that fit."""
        ids, digest = self.written.get((row, number), ([], ""))
        if not ids:
            return None
        known = range(len(self.tokenizer))
        if digest == self.digest and all(token in known for token in ids):
            # The end-of-text id is the only special one.
            ordinary = ids[:-1] if ids[-1] in self.special else ids
            # Another text is one that was replaced after the ids were written.
            same = self.tokenizer.decode(ordinary, clean_up_tokenization_spaces=False) == text
            if same and self.special.isdisjoint(ordinary):
                return list(ids)
        self.refused += 1
        return None


class TrainCollator:
    """Collates samples of `TrainDataset` into a batch of `MllmReIDModel.forward`.

    The image branch gets the prompts and targets of the language loss. The text branch gets the captions, with the
    same instructions and targets under `text_branch`; for the ReID losses alone (`reid_text`) its sequences end with
    the caption.

    Args:
        processor (`MllmReIDProcessor`): Tokenizes the prompts and pads the sequences on the right. A
            `MllmReIDVisionProcessor` does neither, and serves the ReID losses on images alone.
        args (`BatchArguments`): Instruction and text branch.
        language (`bool`): Whether the language loss is computed.
        reid_text (`bool`): Whether the ReID losses read the captions.
        pairs (`bool`): Whether the loss of pairs reads the cameras.

    Example:
        >>> import torch
        >>> from modeling_mllmreid import BatchArguments, TrainCollator
        >>> from modeling_mllmreid.research.tiny_llava import build_processor
        >>> processor = build_processor(["a red coat"], height=64, width=32, patch_size=16)
        >>> collator = TrainCollator(processor, BatchArguments(), language=True, reid_text=False)
        >>> sample = {"pixel_values": torch.zeros(3, 64, 32), "person_ids": 0, "instruction": 0}
        >>> batch = collator([{**sample, "caption": "a red coat", "target": [7, 2]}] * 4)
        >>> batch["pixel_values"].shape, sorted(batch)[:3]
        (torch.Size([4, 3, 64, 32]), ['attention_mask', 'input_ids', 'labels'])
    """

    # Whether the samples need captions where no loss of the model reads them.
    needs_captions = False

    def __init__(self, processor: Any, args: BatchArguments, *, language: bool, reid_text: bool, pairs: bool = False):
        self.processor, self.pairs = processor, pairs
        self.language, self.text_targets = language, language and args.text_branch
        self.has_text_branch = self.text_targets or reid_text
        self.instructions = instruction_texts(args.instruction)
        if isinstance(processor, MllmReIDProcessor):
            self.image_prompts = [processor.image_prompt_ids(text) for text in self.instructions]

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch of B samples.

        Args:
            samples (`Sequence[dict]`): B samples of `TrainDataset`.

        Returns:
            `dict[str, Tensor]`: `pixel_values` (B, 3, height, width) and `person_ids` (B,), with `pairs`
            `camera_ids` (B,); with the language loss
            `input_ids`, `attention_mask` and `labels`, each (B, L), and where it reads only some of the images
            `language_rows` (B,); with a text branch `text_input_ids`, `text_attention_mask`, `text_caption_mask` and,
            under `text_branch`, `text_labels`, each (B, M).
        """
        batch = {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "person_ids": torch.tensor([sample["person_ids"] for sample in samples]),
        }
        if self.pairs:
            batch["camera_ids"] = torch.tensor([sample["camera_ids"] for sample in samples])
        targets = [sample["target"] for sample in samples]
        if self.language:
            prompts = [self.image_prompts[sample["instruction"]] for sample in samples]
            batch |= self.processor.build_inputs(prompts, targets)
            if "language_row" in samples[0]:
                batch["language_rows"] = torch.tensor([sample["language_row"] for sample in samples])
        if self.has_text_branch:
            instructions = [self.instructions[sample["instruction"]] for sample in samples]
            texts = self.processor.text_prompts([sample["caption"] for sample in samples], instructions)
            sequences = self.processor.build_inputs(
                [text.ids if self.text_targets else text.ids[: text.end] for text in texts],
                targets if self.text_targets else [[] for _ in samples],
            )
            if not self.text_targets:
                del sequences["labels"]
            sequences["caption_mask"] = self.processor.caption_mask(texts, sequences["input_ids"].shape[1])
            batch |= {f"text_{name}": tensor for name, tensor in sequences.items()}
        return batch


def label_counts(batch: dict[str, Tensor]) -> Tensor:
    """Counts the target tokens of a batch, on its device: the host does not wait for it.

    Args:
        batch (`dict[str, Tensor]`): `labels` and `text_labels`, each (B, L) with -100 where there is no target.

    Returns:
        `Tensor`: The counts of the image branch and of the text branch, (2,).
    """
    none = next(iter(batch.values())).new_zeros((), dtype=torch.long)
    names = ("labels", "text_labels")
    return torch.stack([(batch[name][:, 1:] != -100).sum() if name in batch else none for name in names])
