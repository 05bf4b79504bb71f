"""A tiny LLaVA made from scratch and taught to continue captions, where no pretrained one can be downloaded."""

from .arguments import LESSONS_VERSION, TinyArguments, build_tiny, teach_tiny

__all__ = ["LESSONS_VERSION", "TinyArguments", "build_tiny", "teach_tiny"]
