"""Tracks: one feature for all images that a camera took of a person while following them."""

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..retrieval.distances import Features
from ..retrieval.ranking import UNKNOWN, Ids


def pool_tracks(features: Features, track_ids: Ids, *ids: Ids) -> tuple[np.ndarray, ...]:
    """The mean feature of each track, and the ids that its images share (person, camera...).

    features: (N, D); track_ids and each of ids: (N,), tracks numbered over all persons and cameras. An image of track
    -1 stays alone. Returns (M, D) float32 and as many (M,) arrays as ids were given, in the order of the tracks' first
    images. The mean is taken in float64 and not normalised: the cosine distance needs no length.
    Raises UserError for columns of another length, and for a track whose images differ in one of the ids.
    """
    rows = features.detach().float().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    tracks, *columns = (np.asarray(column) for column in (track_ids, *ids))
    for column in (tracks, *columns):
        if column.shape != rows.shape[:1]:
            raise UserError(f"tracks: {len(column)} ids for {len(rows)} features: give one of each kind per image")
    # Tracks keep their numbers, lone images get their own below every number in use.
    lone = np.flatnonzero(tracks == UNKNOWN)
    keys = tracks.astype(np.int64)
    keys[lone] = min(keys.min(initial=0), 0) - 1 - np.arange(len(lone))
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    first, place = first[order], np.argsort(order)[place]
    for column in columns:
        differing = np.flatnonzero(column != column[first][place])
        if len(differing):
            row = int(differing[0])
            one, other = column[first][place[row]], column[row]
            raise UserError(
                f"track {tracks[row]}: its images have the ids {one} and {other}: number tracks over all persons and "
                "cameras, -1 where there is none"
            )
    sums = np.zeros((len(first), rows.shape[1]))
    np.add.at(sums, place, rows)
    means = (sums / np.bincount(place, minlength=len(first))[:, None]).astype(np.float32)
    return means, *(column[first] for column in columns)
