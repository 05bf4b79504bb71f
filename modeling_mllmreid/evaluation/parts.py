"""The features that a protocol compares: of the query and gallery images, or of their tracks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..errors import UserError
from ..model import ImageEncoder, ImageEncoderProcessor
from ..retrieval import SamePerson
from .pooling import pool_tracks
from .protocol import embed_parts, same_person


@dataclass
class PartsFeatures:
    """Named features of the query and of the gallery rows, these rows, and the rule of which gallery rows count.

    Features are on process 0, without rows on the others; the rest is on every process.
    """

    query: dict[str, np.ndarray]
    gallery: dict[str, np.ndarray]
    query_rows: Dataset
    gallery_rows: Dataset
    rule: SamePerson


def features_of_parts(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    dataset: DatasetDict,
    *,
    exclude: Sequence[str] = ("camera_id",),
    pool_tracks: bool = False,
    **options: Any,
) -> PartsFeatures:
    """The features of `query` and `gallery`, of images or where wanted of tracks.

    exclude: as in `same_person`. options: those of `embed_images`. Raises UserError for a column that is missing, and
    as `embed_parts` does.
    """
    query, gallery = dataset["query"], dataset["gallery"]
    same_person(query, gallery, exclude)  # a missing column is named before the long work
    query_features, gallery_features = embed_parts(model, processor, query, gallery, **options)
    if pool_tracks:
        query_features, query = _by_track(query_features, query, exclude)
        gallery_features, gallery = _by_track(gallery_features, gallery, exclude)
    return PartsFeatures(query_features, gallery_features, query, gallery, same_person(query, gallery, exclude))


def _by_track(
    features: dict[str, np.ndarray], part: Dataset, exclude: Sequence[str]
) -> tuple[dict[str, np.ndarray], Dataset]:
    """The features of tracks, and the rows of their first images."""
    if "track_id" not in part.column_names:
        raise UserError("pool_tracks: the data set has no column track_id: add it, or leave pool_tracks out")
    ids = [part[column][:] for column in ("track_id", "person_id", *exclude)]
    # By the ids alone: only process 0 has features.
    _, first = pool_tracks(np.empty((len(part), 0)), *ids)
    pooled = {name: pool_tracks(rows, *ids)[0] if len(rows) else rows for name, rows in features.items()}
    return pooled, part.select(first)
