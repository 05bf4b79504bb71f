"""The model of a gallery: what the gallery stores about it, and what it needs of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ..evaluation.calibration import Calibration
from ..evaluation.pair_fusion import PairFusion
from ..utils.errors import Unavailable, UserError
from ..utils.json_files import Count, Format, Size, Text, parse_json

# Format 1 had no decisions; no release wrote it.
FORMAT, METADATA = 2, "mllmreid_gallery"


class EncoderSettings(Format):
    """A model with its settings: two of them with the same digest and settings compute the same features."""

    model: Text
    revision: str | None = None
    dtype: Text
    # SHA-256 of the weights.
    weights: Text
    feature: Literal["llm", "vision", "concat"]
    numbers: Size
    height: Size
    width: Size
    fields: dict[str, Any] = {}
    onnx: dict[str, Any] | None = None
    flip_test: bool = False


class GalleryModel(EncoderSettings):
    """The metadata of a gallery: its format, what its rows keep of an image, and the model of its features."""

    format: Count
    keep: Literal["file_name", "thumbnail"]


class GalleryEncoder(Protocol):
    """What a gallery needs of a model."""

    def settings(self) -> EncoderSettings:
        """Returns the model and its settings."""

    def encode(self, images: Sequence[Any]) -> np.ndarray:
        """Embeds paths or PIL images. Returns (N, D) float32."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds descriptions. Returns (N, D) float32. Raises UserError if the model cannot."""

    def relevance(self, image: Any, feature: np.ndarray) -> np.ndarray:
        """Returns how much each place of an image adds to its similarity with a feature. Raises UserError."""

    def calibration(self) -> Calibration | None:
        """Returns what distances mean, for groups of unknown people; None if the checkpoint has no calibration."""

    def threshold(self) -> float | None:
        """Returns the distance beyond which nobody is found, chosen on validation people; None if there is none."""

    def pair_fusion(self) -> PairFusion:
        """Returns what pair scores and distances mean together. Raises UserError if the model compares no pairs."""

    def pair_scores(self, photos: Sequence[Any], pictures: Sequence[Any]) -> np.ndarray:
        """Compares each photo with each picture. Returns (photos, pictures) float32, higher for one person."""

    def describe(self, images: Sequence[Any]) -> list[str]:
        """Writes a text about each of N PIL images. Raises UserError if the model writes none."""


def read_metadata(stored: Mapping[bytes, bytes] | None, where: str) -> GalleryModel:
    """Reads the metadata of a data set. Raises UserError if it is no gallery that this version can read."""
    text = (stored or {}).get(METADATA.encode())
    if text is None:
        raise UserError(f"{where}: is a Lance data set, but no gallery of this package: give another place")
    values = parse_json(text, dict[str, Any], where=where)
    if isinstance(values.get("format"), int) and values["format"] > FORMAT:
        raise UserError(f"{where}: a newer version of this package wrote it: install that version")
    metadata = parse_json(text, GalleryModel, where=where)
    if metadata.format < FORMAT:
        raise UserError(f"{where}: an earlier version of this package wrote it: add its images to a new gallery")
    return metadata


def check_unchanged(own: GalleryModel, stored: Mapping[bytes, bytes] | None, where: str) -> None:
    """Raises Unavailable if the metadata of a data set is not what it was when the gallery was opened."""
    try:
        same = read_metadata(stored, where) == own
    except UserError as error:
        raise Unavailable(str(error)) from error
    if not same:
        raise Unavailable(f"{where}: got another model in the meantime: open it again")


def check_same(own: EncoderSettings, given: EncoderSettings, where: str) -> None:
    """Raises UserError if a model does not compute the features of a gallery."""
    for name in ("feature", "numbers", "height", "width", "flip_test", "weights"):
        if getattr(own, name) != getattr(given, name):
            raise UserError(
                f"{where}: was made by another model ({own.model}): {name} is {getattr(own, name)}, that of "
                f"{given.model} is {getattr(given, name)}: give that model, or compute the features again with gallery "
                "reembed"
            )
