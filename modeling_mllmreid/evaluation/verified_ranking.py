"""The verified ranking: the nearest gallery images of each query in the order of their fused log odds."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..retrieval.distances import distance_blocks
from ..retrieval.exact import Ranking
from ..retrieval.points import Features


def verified_blocks(
    query: Features, gallery: Features, shortlist: Ranking, log_odds: np.ndarray
) -> Iterator[tuple[slice, Tensor]]:
    """Computes blocks of distances in which the images of each query's shortlist have another order.

    The image of the highest log odds gets the smallest of their distances, the next one the second smallest, and so on;
    all other images keep theirs. So thresholds, metrics and open-set search can use the distances. Of equal log odds,
    the nearer image is first; images that are equal in both stay equal. Equal distances of others become different, by
    the smallest possible step.

    Args:
        query (`np.ndarray` or `Tensor`): (Q, D) features.
        gallery (`np.ndarray` or `Tensor`): (G, D) features.
        shortlist (`Ranking`): the N nearest gallery images, of `rank_gallery` with the matching rule: an image that the
            rule drops is not one of them.
        log_odds (`np.ndarray`): (Q, N) log odds of these images.

    Returns:
        `Iterator[tuple[slice, torch.Tensor]]`: blocks for `metrics_from_blocks`.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import rank_gallery
        >>> from modeling_mllmreid.evaluation.verified_ranking import verified_blocks
        >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[1.0, 0.1], [1.0, 0.5], [0.0, 1.0]])
        >>> shortlist = rank_gallery(query, gallery, k=2)
        >>> ((_, block),) = verified_blocks(query, gallery, shortlist, np.array([[-1.0, 2.0]]))
        >>> block.argsort().tolist()
        [[1, 0, 2]]
    """
    for rows, block in distance_blocks(query, gallery):
        places = torch.from_numpy(shortlist.indices[rows]).to(block.device)
        odds = torch.from_numpy(np.asarray(log_odds[rows], dtype=np.float64)).to(block.device)
        there = places >= 0
        old = block.gather(1, places.clamp(min=0)).masked_fill(~there, torch.inf)
        odds = odds.masked_fill(~there, -torch.inf)
        order = _order(old, odds)
        ordered = _increasing(old.sort(dim=1).values, _equal_to_next(old, odds, order))
        new = torch.empty_like(old).scatter_(1, order, ordered)
        row, column = there.nonzero(as_tuple=True)
        block[row, places[row, column]] = new[row, column]
        yield rows, block


def _order(old: Tensor, odds: Tensor) -> Tensor:
    """Returns the columns (n, N) by descending log odds; of equal ones the nearer is first."""
    nearer = old.argsort(dim=1, stable=True)
    by_odds = odds.gather(1, nearer).argsort(dim=1, descending=True, stable=True)
    return nearer.gather(1, by_odds)


def _equal_to_next(old: Tensor, odds: Tensor, order: Tensor) -> Tensor:
    """Returns which images (n, N - 1), in their new order, have the distance and the log odds of the next one."""
    equal = [values.gather(1, order).diff(dim=1) == 0 for values in (old.nan_to_num(), odds.nan_to_num())]
    return equal[0] & equal[1]


def _increasing(distances: Tensor, tied: Tensor) -> Tensor:
    """Returns ascending distances (n, N), strictly ascending but for ties; they only become smaller or stay."""
    columns = list(distances.unbind(dim=1))
    for number in reversed(range(len(columns) - 1)):
        following = columns[number + 1]
        below = following.nextafter(torch.full_like(following, -torch.inf))
        columns[number] = torch.where(tied[:, number], following, torch.minimum(columns[number], below))
    return torch.stack(columns, dim=1)
