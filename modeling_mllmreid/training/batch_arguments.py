"""Settings of the training batches. They need no Trainer, whose import takes a second."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..utils.errors import UserError


@dataclass
class BatchArguments:
    """Settings of the training batches: texts, instructions and augmentation.

    Args:
        texts (`str`, *optional*): Path of the `texts.jsonl` with the continuations.
        target (`str`): The text that the language model learns to write: "continuation", "caption", or "split" (the
            second half of the caption).
        text_branch (`bool`): Whether the language loss reads captions in addition to images.
        max_target_tokens (`int`): Length in tokens at which targets are cut.
        language_share (`float`): Share of the images of a batch that the language loss reads, above 0 and up to 1. The
            ReID losses read all of them. Texts through a large language model are most of the cost of a step.
        instruction (`str`): "common" (the Common Instruction), "standard" (a description prompt) or "pool" (a random
            prompt for each image).
        val_identities (`int`): Number of people moved from train to val where the data set has no val split.
        flip (`float`): Probability of mirroring a crop, 0 to 1.
        pad (`int`): Largest shift of a crop, in pixels.
        erase (`float`): Probability of erasing a rectangle, 0 to 1.
        color_jitter (`float`): Largest relative change of brightness, contrast and saturation, 0 to below 1.
        downscale (`float`): Probability of shrinking a crop to between half and full size and enlarging it, 0 to 1.

    Raises:
        UserError: A probability or a number is out of range.

    Example:
        >>> from modeling_mllmreid import BatchArguments
        >>> batches = BatchArguments(target="caption", text_branch=False, erase=0.0)
        >>> batches.flip, batches.pad
        (0.5, 10)
    """

    texts: str | None = field(
        default=None, metadata={"help": "texts.jsonl with the continuations, written by the continuations command."}
    )
    target: Literal["continuation", "caption", "split"] = field(
        default="continuation",
        metadata={"help": "Text to learn to write; split: second half of the caption."},
    )
    text_branch: bool = field(
        default=True, metadata={"help": "Compute the language loss on captions too, with the same targets."}
    )
    max_target_tokens: int = field(
        default=32,
        metadata={"metavar": "N>=1", "help": "Maximum number of tokens in a target; longer ones are cut."},
    )
    language_share: float = field(
        default=1.0,
        metadata={"metavar": "0<X<=1", "help": "Share of the images of a batch that the language loss reads."},
    )
    instruction: Literal["common", "standard", "pool"] = field(
        default="common",
        metadata={"help": "The Common Instruction, a standard description prompt, or a random prompt for each image."},
    )
    val_identities: int = field(
        default=0,
        metadata={
            "metavar": "N>=0",
            "help": "People moved from train to val; only for a data set without val.",
        },
    )
    flip: float = field(default=0.5, metadata={"metavar": "0<=X<=1", "help": "Probability of mirroring a crop."})
    pad: int = field(default=10, metadata={"metavar": "N>=0", "help": "Largest shift of a crop, in pixels."})
    erase: float = field(
        default=0.5, metadata={"metavar": "0<=X<=1", "help": "Probability of erasing a rectangle of a crop."}
    )
    color_jitter: float = field(
        default=0.0,
        metadata={"metavar": "0<=X<1", "help": "Largest relative change of brightness, contrast and saturation."},
    )
    downscale: float = field(
        default=0.0,
        metadata={"metavar": "0<=X<=1", "help": "Probability of shrinking a crop by up to half and enlarging it."},
    )

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "downscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: give a probability, 0 to 1")
        if not 0 < self.language_share <= 1:
            raise UserError(f"language_share {self.language_share}: give a share above 0 and up to 1")
        if not 0 <= self.color_jitter < 1:
            raise UserError(f"color_jitter {self.color_jitter}: give a relative change, 0 or more and below 1")
        for name, least in (("max_target_tokens", 1), ("val_identities", 0), ("pad", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)}: give {least} or more")

    def to_record(self, *, language: bool) -> dict[str, Any]:
        """Returns the settings for `run.json`. language: whether the model has a language model."""
        settings = {name: value for name, value in asdict(self).items() if name != "texts"}
        return settings if language else {name: settings[name] for name in IMAGE_SETTINGS}


# Settings of the batches that an encoder without a language model has.
IMAGE_SETTINGS = ("val_identities", "flip", "pad", "erase", "color_jitter", "downscale")
