"""Alpha query expansion: a query becomes a weighted mean of itself and its nearest gallery images."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .distances import Features
from .ranking import rank_gallery


def expand_queries(query: Features, gallery: Features, *, k: int = 10, alpha: float = 3.0) -> np.ndarray:
    """Expanded query features, (Q, D) float32 and L2-normalised: query + the sum of similarity**alpha * neighbour.

    query: (Q, D) and gallery: (G, D), as in `distance_blocks`; similarity is the cosine, negative ones count as 0; the
    neighbours are the k nearest gallery images, whoever they show. alpha 0 is plain average query expansion.
    Raises UserError for k below 1, a negative alpha, and bad features.
    Source: Radenovic et al. 2018.
    """
    if alpha < 0:
        raise UserError(f"alpha: {alpha} is negative: use 0 (plain average) or more")
    ranking = rank_gallery(query, gallery, k)
    rows = _unit(query)
    for row, near, distances in zip(rows, ranking.indices, ranking.distances, strict=True):
        found = near >= 0
        weights = (1 - torch.from_numpy(distances[found]).double()).clamp(min=0) ** alpha
        row += weights @ _unit(gallery[near[found]])
    return F.normalize(rows, dim=1).float().numpy()


def _unit(features: Features) -> Tensor:
    """The features as a new float64 tensor on the CPU, L2-normalised. A memory-mapped array may be read-only."""
    rows = features.detach().cpu() if isinstance(features, Tensor) else torch.from_numpy(features.astype(np.float64))
    return F.normalize(rows.double(), dim=1)
