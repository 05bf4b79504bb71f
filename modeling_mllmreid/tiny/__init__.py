"""A tiny LLaVA made from scratch and taught to continue captions, where no pretrained one can be downloaded."""

from .arguments import TinyArguments, build_tiny, teach_tiny

__all__ = ["TinyArguments", "build_tiny", "teach_tiny"]
