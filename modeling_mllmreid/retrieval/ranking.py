"""The nearest gallery images of each query, from blocks of distances."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError
from .distances import distance_blocks, rounding_errors
from .exact import Ranking, candidate_limit, exact_distances, exact_order, nearest_exact
from .matching import SamePerson
from .points import Features, checked_features, on_cpu

Blocks = Iterable[tuple[slice, np.ndarray | Tensor]]
# Of a part: n queries times the images of the person with most of them.
PART_IMAGES = 2**20


class Part(NamedTuple):
    """Distances of n queries, and which gallery images show their persons. All tensors are on the device of the block.

    Args:
        queries (`slice`): the queries.
        distances (`Tensor`): (n, G) float32; they may be a view of the block: do not change them.
        images (`Tensor`): (n, M) int64 gallery images of each query's person; behind the last one the first one again.
        there (`Tensor`): (n, M) bool, whether there is an image.
        kept (`Tensor`): (n, M) bool, whether there is one that the matching rule keeps.
    """

    queries: slice
    distances: Tensor
    images: Tensor
    there: Tensor
    kept: Tensor


def parts(blocks: Blocks, same_person: SamePerson) -> Iterator[Part]:
    """Checks blocks of distances, and yields them in parts, with the images of the queries' persons.

    Args:
        blocks (`Iterable[tuple[slice, np.ndarray | Tensor]]`): a slice of the queries and their distances (queries, G);
            smaller is nearer. Each query comes once, in any order. A whole matrix is one block:
            `[(slice(0, len(matrix)), matrix)]`.
        same_person (`SamePerson`): the matching rule of these queries and this gallery.

    Yields:
        `Part`: consecutive queries.

    Raises:
        UserError: if distances are NaN, a block has the wrong shape, or a query is missing or comes twice.
    """
    for queries, block in _checked(blocks, same_person):
        step = max(PART_IMAGES // max(int(same_person.image_counts(queries).max(initial=0)), 1), 1)
        for start in range(queries.start, queries.stop, step):
            part = slice(start, min(start + step, queries.stop))
            images = (torch.from_numpy(array).to(block.device) for array in same_person.block_images(part))
            yield Part(part, block[part.start - queries.start : part.stop - queries.start], *images)
        del block  # before the next one is computed


def query_distances(blocks: Blocks, same_person: SamePerson) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the distances (G,) float32 of one query after the other, on the CPU, from blocks as in `parts`.

    They may be a view of the block: do not change them.
    """
    for queries, block in _checked(blocks, same_person):
        yield from zip(range(queries.start, queries.stop), block.cpu().numpy(), strict=True)


def _checked(blocks: Blocks, same_person: SamePerson) -> Iterator[tuple[slice, Tensor]]:
    """Yields blocks as float32 on their own devices; raises the errors of `parts`."""
    seen = np.zeros(len(same_person.query_persons), dtype=np.int64)
    for queries, block in blocks:
        indices = range(len(seen))[queries]
        expected = (len(indices), len(same_person.gallery_persons))
        if tuple(block.shape) != expected:
            raise UserError(
                f"distances of queries {queries.start} to {queries.stop}: shape {tuple(block.shape)}, not {expected}: "
                "give one row per query and one column per gallery image"
            )
        distances = _float32(block)
        # The maximum is NaN if any element is; this needs no second matrix. `max` is slow for a part of a matrix.
        if distances.numel() and distances.amax().isnan():
            raise UserError(
                f"distances of queries {queries.start} to {queries.stop} are NaN: fix the code that computes them"
            )
        seen[queries] += 1
        if indices.step == 1:
            yield slice(indices.start, indices.stop), distances
        else:
            yield from ((slice(index, index + 1), row[None]) for index, row in zip(indices, distances, strict=True))
        del block, distances  # frees the memory before the next block is computed
    if (seen != 1).any():
        query = int(np.flatnonzero(seen != 1)[0])
        raise UserError(f"distances: query {query} comes {seen[query]} times: give each query once")


def _float32(block: np.ndarray | Tensor) -> Tensor:
    """Returns a block as a float32 tensor on its device, without a copy where possible."""
    if isinstance(block, Tensor):
        return block.detach().float()
    array = np.asarray(block, dtype=np.float32)
    # A tensor cannot share a read-only array.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def no_match_error(same_person: SamePerson) -> UserError:
    """Returns the error for queries without any match: the counts, the reason and the fix."""
    queries, persons = same_person.query_persons, same_person.gallery_persons
    counts = f"{len(queries):,} queries and {len(persons):,} gallery images"
    if not (len(queries) and len(persons)):
        return UserError(f"no query has a match: {counts}: give at least one query and one gallery image")
    shared = int(np.isin(persons, queries).sum())
    if not shared or not same_person.excluded:
        return UserError(
            f"no query has a match: {counts}, but none of the {len(np.unique(queries)):,} persons of the queries is "
            f"among the {len(np.unique(persons)):,} of the gallery: use the same person numbers in queries and gallery"
        )
    cameras = len(np.unique(same_person.excluded[0][1]))
    return UserError(
        f"no query has a match: {counts}; the same-camera filter drops gallery images of the query's person and "
        f"camera, here all {shared:,} of the queries' persons (the gallery has {cameras} cameras): "
        "leave the camera ids out for no filter, or give -1 where the camera is unknown"
    )


def rank_gallery(
    query: Features,
    gallery: Features,
    k: int,
    *,
    same_person: SamePerson | None = None,
    metric: str = "cosine",
    block_size: int | None = None,
) -> Ranking:
    """Finds the k nearest gallery images of each query. Among equal distances the lower gallery index comes first.

    The distances are computed in float64 and rounded to float32: they do not depend on the rest of the gallery, on the
    device or on the library of the matrix product. See `retrieval/exact.py`.

    Args:
        query (`np.ndarray` or `Tensor`): (Q, D) features of any float type, on CPU or GPU.
        gallery (`np.ndarray` or `Tensor`): (G, D) features.
        k (`int`): number of gallery images per query.
        same_person (`SamePerson`, *optional*): leaves out the gallery images that the matching rule drops, as the
            metrics do. A search needs no rule.
        metric (`str`, defaults to `"cosine"`): `"cosine"` or `"euclidean"`.
        block_size (`int`, *optional*): queries per block of distances. By default a block takes about 48 MiB.

    Returns:
        `Ranking`: `indices` (Q, k) int64 and `distances` (Q, k) float32.

    Raises:
        UserError: if k is below 1, features are not finite or do not fit each other, or the rule has other queries.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import rank_gallery
        >>> gallery = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=np.float32)
        >>> ranking = rank_gallery(np.array([[2.0, 0.1]], dtype=np.float32), gallery, k=2)
        >>> ranking.indices.tolist()
        [[1, 2]]
        >>> [f"{distance:.3f}" for distance in ranking.distances[0]]
        ['0.001', '0.258']
    """
    blocks = distance_blocks(query, gallery, metric=metric, block_size=block_size)
    _check(k, len(query), same_person)
    empty = not (len(query) and len(gallery))
    errors = np.zeros(len(query)) if empty else rounding_errors(query, gallery, metric)
    ranking = Ranking.empty(len(query), k)

    def take(indices: np.ndarray) -> np.ndarray:
        return _array(gallery[indices])

    for rows, block in blocks:
        features = _array(query[rows])
        half_squares = block if metric == "cosine" else block.square_().div_(2)
        if on_cpu(block):
            found = (
                nearest_exact(features[place], take, rough, errors[number], k, metric)
                for place, (number, rough) in enumerate(_kept_rows(rows, half_squares, same_person))
            )
        else:
            candidates = _candidates_on_device(rows, half_squares, errors[rows], k, same_person)
            found = (
                exact_order(feature, take, own, k, metric) for feature, own in zip(features, candidates, strict=True)
            )
        for number, nearest in enumerate(found, start=rows.start):
            for row, values in zip((ranking.indices, ranking.distances), nearest, strict=True):
                row[number, : len(values)] = values
    return ranking


def listed_distances(query: Features, gallery: Features, indices: np.ndarray) -> np.ndarray:
    """Computes the cosine distances of each query to the gallery images that a ranking lists for it.

    They are those of `rank_gallery`, and may be computed by other features than the ranking.

    Args:
        query (`np.ndarray` or `Tensor`): (Q, D) features.
        gallery (`np.ndarray` or `Tensor`): (G, D) features.
        indices (`np.ndarray`): (Q, k) int64 gallery indices of each query, -1 for none, as of `Ranking.indices`.

    Returns:
        `np.ndarray`: (Q, k) float32; infinity for index -1.

    Raises:
        UserError: if features are not finite.
    """
    query, gallery = checked_features(query, "query_features"), checked_features(gallery, "gallery_features")
    distances = np.full(indices.shape, np.inf, dtype=np.float32)
    for number, listed in enumerate(indices):
        there = listed >= 0
        distances[number, there] = exact_distances(_array(query[number]), _array(gallery[listed[there]]))
    return distances


def _candidates_on_device(
    rows: slice, block: Tensor, errors: np.ndarray, k: int, same_person: SamePerson | None
) -> list[np.ndarray]:
    """Returns for each query of a block the ascending indices of the images that may be among its k nearest."""
    if same_person is not None and same_person.image_counts(rows).any():
        images, there, kept = (torch.from_numpy(array).to(block.device) for array in same_person.block_images(rows))
        dropped = there & ~kept
        dropped = dropped.where(there, dropped[:, :1])  # behind the last image the first one comes again
        block = block.scatter(1, images, block.gather(1, images).masked_fill(dropped, torch.inf))
    limits = torch.full_like(block[:, :1], torch.inf)
    if k < block.shape[1]:
        bounds = block.kthvalue(k, dim=1, keepdim=True).values.double()
        limits = candidate_limit(bounds, torch.from_numpy(errors[:, None]).to(block.device)).float()
        limits = limits.nextafter(torch.full_like(limits, torch.inf))
    numbers, indices = (
        found.cpu().numpy() for found in torch.nonzero((block <= limits) & (block < torch.inf), as_tuple=True)
    )
    ends = np.searchsorted(numbers, np.arange(len(block) + 1))
    return [indices[start:end] for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


def rank_blocks(
    blocks: Iterable[tuple[slice, np.ndarray | Tensor]], queries: int, k: int, *, same_person: SamePerson | None = None
) -> Ranking:
    """Ranks the gallery as `rank_gallery` does, from blocks of distances such as those of `rerank_blocks`.

    Args:
        blocks (`Iterable[tuple[slice, np.ndarray | Tensor]]`): a slice of the queries and their distances (queries, G);
            the blocks are not changed.
        queries (`int`): number of queries, Q.
        k (`int`): number of gallery images per query.
        same_person (`SamePerson`, *optional*): leaves out the gallery images that the matching rule drops.

    Returns:
        `Ranking`: `indices` (Q, k) int64 and `distances` (Q, k) float32.

    Raises:
        UserError: if k is below 1, or the rule has other queries.
    """
    _check(k, queries, same_person)
    ranking = Ranking.empty(queries, k)
    for rows, block in blocks:
        for number, row in _kept_rows(rows, block, same_person):
            nearest = nearest_in_row(row, k)
            ranking.indices[number, : len(nearest)] = nearest
            ranking.distances[number, : len(nearest)] = row[nearest]
    return ranking


def _check(k: int, queries: int, same_person: SamePerson | None) -> None:
    """Raises UserError for a number of images below 1, or a rule of other queries."""
    if k < 1:
        raise UserError(f"k: {k} is not a number of images: use 1 or more")
    if same_person is not None and len(same_person.query_persons) != queries:
        raise UserError(
            f"same_person: has {len(same_person.query_persons)} queries, not {queries}: give an id for each query"
        )


def _kept_rows(
    rows: slice, block: np.ndarray | Tensor, same_person: SamePerson | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number and the distances (G,) of each query of a block; infinity where the rule drops an image."""
    for number, row in enumerate(_array(block), start=rows.start):
        if same_person is not None:
            same, dropped = same_person.gallery_images(number)
            row = row.copy()
            row[same[dropped]] = np.inf
        yield number, row


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    """Returns an array on the CPU; bfloat16, which NumPy lacks, as float32."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def nearest_in_row(row: np.ndarray, k: int) -> np.ndarray:
    """Returns the indices (at most k,) of the smallest finite distances of a row (G,), ascending, ties by index."""
    candidates = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1]) if k < len(row) else np.arange(len(row))
    candidates = candidates[row[candidates] < np.inf]
    return candidates[np.argsort(row[candidates], kind="stable")[:k]]


def nearest_in_block(block: Tensor, k: int) -> Tensor:
    """Returns the indices (n, k) int64 of the smallest distances of each row of a block (n, G), k at most G.

    They ascend, equal distances by index. Distances are finite and not negative.
    """
    if on_cpu(block):
        return torch.from_numpy(np.array([nearest_in_row(row, k) for row in block.numpy()], np.int64).reshape(-1, k))
    return _nearest_on_device(block, k)


def _nearest_on_device(block: Tensor, k: int) -> Tensor:
    """Computes `nearest_in_block` by numbers that order as distance and index do: the bits of both."""
    keys = (block + 0).view(torch.int32).long() << 32  # adding 0 turns -0 into 0
    keys += torch.arange(block.shape[1], device=block.device)
    return keys.topk(k, dim=1, largest=False, sorted=True).values & 0xFFFFFFFF
