"""Spoilt texts: what a gain must not survive if it comes from what the captions say."""

import numpy as np
from datasets import Dataset

from ...data.columns import FEATURES


def permute_captions(split: Dataset, seed: int) -> Dataset:
    """Every person's images with the texts of one other person: still consistent within a person, but of no use.

    People are mapped in one cycle of a random order, so that nobody keeps the own texts; where the other person has
    fewer images they are used again. Raises ValueError for fewer than two people.
    """
    people = np.asarray(split["person_id"][:])
    distinct = np.unique(people)
    if len(distinct) < 2:
        raise ValueError("captions of one person cannot be permuted over people")
    order = np.random.default_rng(seed).permutation(distinct)
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    rows_of = {person: np.flatnonzero(people == person) for person in distinct.tolist()}
    source = np.arange(len(people))
    for person, rows in rows_of.items():
        source[rows] = np.resize(rows_of[other[person]], len(rows))
    return _texts_from(split, source)


def spoil_captions(split: Dataset, share: float, seed: int) -> Dataset:
    """A `share` of the images, drawn at random, with the texts of a random image of another person."""
    rng = np.random.default_rng(seed)
    people = np.asarray(split["person_id"][:])
    source = np.arange(len(people))
    for row in rng.permutation(len(people))[: round(share * len(people))]:
        source[row] = rng.choice(np.flatnonzero(people != people[row]))
    return _texts_from(split, source)


def _texts_from(split: Dataset, source: np.ndarray) -> Dataset:
    """The split with row i's captions and continuations those of row source[i]."""
    for column in ("caption", "continuation"):
        values = split[column][:]
        moved = [values[row] for row in source]
        split = split.remove_columns(column).add_column(column, moved, feature=FEATURES[column])
    return split
