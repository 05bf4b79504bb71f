"""`demo`: the whole road on rendered pedestrians, with a tiny LLaVA made from scratch; the real code, small sizes."""

from .run import main

__all__ = ["main"]
