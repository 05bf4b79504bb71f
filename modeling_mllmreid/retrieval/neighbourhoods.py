"""The similarity of two images' neighbourhoods: images of one person have the same neighbours in a gallery.

A short distance alone is weak evidence, because a large gallery has similar people. Two images whose nearest images are
the same ones are one person more often than two images at the same distance that have other neighbours.
"""

from dataclasses import dataclass

import numpy as np

from .scan import Scan

# Mutual neighbours that describe an image, images over which a description is averaged, candidates of an image.
NEIGHBOURS, AVERAGED, CANDIDATES = 10, 3, 50
# Pairs that are compared at once.
PAIRS = 4096
EMPTY = -1


@dataclass(frozen=True)
class Candidates:
    """Pairs of images that may show one person; every other pair has the similarity 0.

    Args:
        first (`np.ndarray`): (P,) int64 index of an image.
        second (`np.ndarray`): (P,) int64 index of the other, which is larger. The pairs are sorted and distinct.
        distance (`np.ndarray`): (P,) float32 cosine distance.
        similarity (`np.ndarray`): (P,) float32, from 0 (no common neighbour) to 1 (the same neighbourhood).
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    similarity: np.ndarray


def find_candidates(features: np.ndarray) -> Candidates:
    """Finds for each image its nearest images, and compares their neighbourhoods.

    The neighbourhood of an image is the set of those of its 10 nearest images that have it among theirs, and the image
    itself, with weights exp(-distance) of sum 1; it is averaged over the image and its 2 nearest images. The similarity
    is that of Jaccard: the sum of the smaller weights over the sum of the larger ones. Memory is 4 kilobytes for each
    image; no N x N matrix is stored, and the time grows with N squared (one product of the features with themselves).

    Args:
        features (`np.ndarray`): (N, D) float features.

    Returns:
        `Candidates`: The pairs of an image and one of its 50 nearest images.

    Raises:
        UserError: The features are not finite floats.

    Source: Zhong et al. 2017 (k-reciprocal encoding), without the expansion of the sets.
    """
    size = len(features)
    if size < 2:
        nothing = np.empty(0, np.int64)
        return Candidates(nothing, nothing, nothing.astype(np.float32), nothing.astype(np.float32))
    nearest, distances = _others(features, min(CANDIDATES, size - 1))
    columns, weights = _neighbourhoods(nearest[:, :NEIGHBOURS], distances[:, :NEIGHBOURS])
    rows = np.repeat(np.arange(size), nearest.shape[1])
    keys = np.minimum(rows, nearest.ravel()) * size + np.maximum(rows, nearest.ravel())
    keys, places = np.unique(keys, return_index=True)
    first, second = np.divmod(keys, size)
    return Candidates(first, second, distances.ravel()[places], _jaccard(columns, weights, first, second))


def _others(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest other images of each image and their distances, (N, count) each."""
    ranking = Scan.of(features).ranking(features, count + 1)
    own = ranking.indices == np.arange(len(features))[:, None]
    # Among many equal images, an image may not be in its own list.
    own[~own.any(1), -1] = True
    return ranking.indices[~own].reshape(-1, count), ranking.distances[~own].reshape(-1, count)


def _neighbourhoods(nearest: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the members of each neighbourhood, (N, M) int64 with -1 for none, and their weights (N, M) float32."""
    size, width = len(nearest), nearest.shape[1] + 1
    mutual = np.zeros(nearest.shape, dtype=bool)
    for position in range(nearest.shape[1]):
        mutual[:, position] = (nearest[nearest[:, position]] == np.arange(size)[:, None]).any(1)
    members = np.column_stack([np.arange(size), np.where(mutual, nearest, EMPTY)])
    weights = np.column_stack([np.ones(size), np.where(mutual, np.exp(-distances.astype(np.float64)), 0)])
    weights /= weights.sum(1, keepdims=True)
    shared = np.column_stack([np.arange(size), nearest[:, : AVERAGED - 1]])
    members, weights = members[shared].reshape(size, -1), weights[shared].reshape(size, -1) / shared.shape[1]
    # Members that come several times get the sum of their weights, at the first place.
    order = np.argsort(members, axis=1, kind="stable")
    members, weights = np.take_along_axis(members, order, 1), np.take_along_axis(weights, order, 1)
    for position in range(shared.shape[1] * width - 1, 0, -1):
        again = members[:, position] == members[:, position - 1]
        weights[again, position - 1] += weights[again, position]
        members[again, position], weights[again, position] = EMPTY, 0
    return members, weights.astype(np.float32)


def _jaccard(columns: np.ndarray, weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the Jaccard similarity (P,) float32 of two neighbourhoods, whose weights have the sum 1."""
    # Empty places differ between the two factors, so that they are never equal.
    others = np.where(columns == EMPTY, EMPTY - 1, columns)
    similarity = np.empty(len(first), np.float32)
    for start in range(0, len(first), PAIRS):
        one, two = first[start : start + PAIRS], second[start : start + PAIRS]
        smaller = np.zeros(len(one))
        for position in range(columns.shape[1]):
            equal = columns[one, position, None] == others[two]
            smaller += np.where(equal, np.minimum(weights[one, position, None], weights[two]), 0).sum(1)
        similarity[start : start + PAIRS] = smaller / (2 - smaller)
    return similarity
