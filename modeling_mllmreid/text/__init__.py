"""Texts: the instructions, the generation engine, captions and continuations."""
