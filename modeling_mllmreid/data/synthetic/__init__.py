"""Synthetic pedestrians: rendered person crops, cameras and captions, so that everything runs without a download."""

from .captions import attribute_words, sample_descriptions
from .worlds import WORLDS
from .write import WrittenPedestrians, write_pedestrians, write_world

__all__ = [
    "WORLDS",
    "WrittenPedestrians",
    "attribute_words",
    "sample_descriptions",
    "write_pedestrians",
    "write_world",
]
