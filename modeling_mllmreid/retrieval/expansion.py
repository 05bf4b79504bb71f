"""Alpha query expansion: a query becomes a weighted mean of itself and its nearest gallery images."""

import numpy as np
import torch
import torch.nn.functional as F

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
    found = torch.from_numpy(ranking.indices >= 0)
    weights = torch.where(found, torch.from_numpy(1 - ranking.distances).clamp(min=0) ** alpha, 0.0)
    rows = [
        F.normalize(torch.as_tensor(own).float(), dim=0)
        + weight @ F.normalize(torch.as_tensor(gallery[near]).float().cpu(), dim=1)
        for own, weight, near in zip(torch.as_tensor(query).cpu(), weights, ranking.indices, strict=True)
    ]
    return F.normalize(torch.stack(rows), dim=1).numpy() if rows else np.empty(query.shape, dtype=np.float32)
