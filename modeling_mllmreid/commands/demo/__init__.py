"""`demo`: the whole road on rendered pedestrians, with a tiny LLaVA built from scratch; the real code, small numbers."""

from .run import main

__all__ = ["main"]
