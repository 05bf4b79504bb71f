"""Tracklets: the images of one track as one feature."""

from collections.abc import Sequence

import numpy as np

from ..errors import UserError

NO_TRACK = -1


def pool_tracks(
    features: np.ndarray, track_ids: Sequence[int] | np.ndarray, *ids: Sequence | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(mean features of the tracks (T, D) float32, L2-normalised, the row (T,) of each track's first image).

    features: (N, D), L2-normalised; track_ids: (N,) integers, -1 for an image that is of no track and stays alone; ids:
    any number of (N,) arrays, such as person and camera, each of one value within a track. Tracks come in the order of
    their first image.
    Raises UserError for counts that differ, and for a track of two persons or cameras.
    """
    tracks = np.asarray(track_ids)
    columns = [np.asarray(column) for column in ids]
    for column in (tracks, *columns):
        if column.shape != (len(features),):
            raise UserError(f"ids of shape {column.shape} for {len(features)} features: give one per image")
    keys = np.where(tracks == NO_TRACK, -1 - np.arange(len(tracks)), tracks)
    _, first, codes = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    first, codes = first[order], np.argsort(order)[codes]
    for column in columns:
        mixed = np.flatnonzero(column != column[first][codes])
        if len(mixed):
            row = mixed[0]
            raise UserError(
                f"track {tracks[row]}: holds ids {column[first[codes[row]]]} and {column[row]}: number tracks so that "
                "each is of one person and one camera"
            )
    sums = np.zeros((len(first), features.shape[1]))
    np.add.at(sums, codes, features)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.maximum(norms, 1e-12)).astype(np.float32), first
