"""Synthetic pedestrians: rendered person crops, cameras and captions, so that everything runs without a download."""

from .captions import attribute_words, sample_descriptions
from .write import WrittenPedestrians, write_pedestrians

__all__ = ["WrittenPedestrians", "attribute_words", "sample_descriptions", "write_pedestrians"]
