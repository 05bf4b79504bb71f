"""`ablate`: rows and contrasts fixed beforehand, a run for each row, training set, budget and seed, one report."""

from .command import main

__all__ = ["main"]
