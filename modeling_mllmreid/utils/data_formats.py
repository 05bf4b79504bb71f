"""The JSON formats of data sets: splits, captions, continuations, rendered worlds and MATLAB files."""

from typing import Any, Literal

from pydantic import JsonValue

from .json_files import Count, Format, Id, Share, Text


class SplitsFile(Format):
    """splits.json of own data: the file names of each split, and the share and the seed of the draw."""

    train: list[Text]
    query: list[Text]
    gallery: list[Text]
    val: list[Text] = []
    test_share: Share | None = None
    split_seed: Count | None = None


class TorchreidImageSplit(Format):
    """One entry of torchreid's splits.json: the images of each split, each alone or first in a list."""

    train: list[str | list[Any]]
    query: list[str | list[Any]]
    gallery: list[str | list[Any]]


class TorchreidPersonSplit(Format):
    """One entry of torchreid's splits_single_shot.json: the persons of each split."""

    train: list[Id]
    test: list[Id]


class CaptionEntryFields(Format):
    """One entry of a captions file of the CUHK-PEDES schema, besides its image's path."""

    split: Literal["train", "val", "test"]
    captions: list[str]
    id: Id


class CaptionRecordLine(Format):
    """One line of a captions sidecar: a caption that a model wrote for an image."""

    source: str
    split: str
    file_name: Text
    caption_index: Count
    caption: str
    provenance: dict[str, Any]


class TextRecordLine(CaptionRecordLine):
    """One line of a texts sidecar: a caption and its continuation, with the ids that were written."""

    continuation: str
    ids: list[Id] | None = None
    tokenizer: str | None = None


class WorldFile(Format):
    """world.json of a rendered world."""

    world: Text
    version: int


# The output of `data.readers.matlab_process`: variables of a MATLAB file by name.
MatlabVariables = dict[str, JsonValue]
