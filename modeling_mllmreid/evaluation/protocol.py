"""The retrieval protocol on a data set's query and gallery parts: a row of metrics for each feature, from one pass."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.columns import UNKNOWN_CAMERA, image_sources
from ..data.images import ImageSource, open_image
from ..errors import UserError
from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval import rank_gallery, ranked_sheet
from .color_histogram import color_histograms
from .embedding import embed_images
from .metrics import RetrievalMetrics, evaluate_retrieval

Features = Mapping[str, np.ndarray]


def evaluate_model(
    model: MllmReIDModel, processor: MllmReIDProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> dict[str, RetrievalMetrics]:
    """The metrics of each test feature ("llm", "vision", "concat"), from one pass over the images.

    query, gallery: splits of the data contract. Gallery images of the query's person and camera are dropped, an unknown
    camera (-1) being no camera's match. options: those of `embed_images`.
    Raises UserError for an empty part, a broken image, and for queries that would find themselves.
    """
    query_features, gallery_features = embed_parts(model, processor, query, gallery, **options)
    return metrics_of_features(query_features, gallery_features, query, gallery)


def embed_parts(
    model: MllmReIDModel, processor: MllmReIDProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The features of the query and of the gallery images, by name. options: those of `embed_images`."""
    check_parts(query, gallery)
    features = embed_images(model, processor, [*image_sources(query), *image_sources(gallery)], **options)
    return (
        {name: rows[: len(query)] for name, rows in features.items()},
        {name: rows[len(query) :] for name, rows in features.items()},
    )


def metrics_of_features(
    query_features: Features, gallery_features: Features, query: Dataset, gallery: Dataset
) -> dict[str, RetrievalMetrics]:
    """The metrics of each named feature, (Q, D) against (G, D), under the rule of person and camera."""
    ids = [part[column][:] for column in ("person_id", "camera_id") for part in (query, gallery)]
    return {name: evaluate_retrieval(rows, gallery_features[name], *ids) for name, rows in query_features.items()}


def histogram_row(query: Dataset, gallery: Dataset) -> RetrievalMetrics:
    """The metrics of the colour histogram: what a learned feature has to pass first."""
    check_parts(query, gallery)
    query_rows, gallery_rows = (color_histograms(map(open_image, image_sources(part))) for part in (query, gallery))
    return metrics_of_features({"histogram": query_rows}, {"histogram": gallery_rows}, query, gallery)["histogram"]


def check_parts(query: Dataset, gallery: Dataset) -> None:
    """Raises UserError for an empty part, and where an image of unknown camera is a query and in the gallery as well.

    Nothing would drop it there: every such query would find itself first, a perfect score that means nothing. It is so
    where the queries are captions (CUHK-PEDES).
    """
    for name, part in (("query", query), ("gallery", gallery)):
        if not len(part):
            raise UserError(f"the {name} part has no image: give a data set with query and gallery images")
    in_gallery = set(zip(gallery["source"][:], gallery["file_name"][:], strict=True))
    columns = (query[column][:] for column in ("source", "file_name", "camera_id"))
    for source, file_name, camera_id in zip(*columns, strict=True):
        if camera_id == UNKNOWN_CAMERA and (source, file_name) in in_gallery:
            raise UserError(
                f"query image {file_name} is in the gallery too, of unknown camera: it would find itself; "
                "give other images as queries, or camera ids"
            )


def evenly_spread(count: int, wanted: int = 8) -> np.ndarray:
    """At most `wanted` of so many rows, at equal steps over all of them, whatever their score."""
    return np.unique(np.linspace(0, count - 1, num=min(wanted, count)).round().astype(int))


def draw_queries(
    path_png: str | os.PathLike[str],
    rows: np.ndarray,
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    query: Dataset,
    gallery: Dataset,
    *,
    titles: Sequence[str] | None = None,
    top_k: int = 10,
    title: str = "Nearest gallery images",
) -> None:
    """A ranked sheet of these rows of the query part.

    query_features: (Q, D); gallery_features: (G, D). Images of the query's person and camera are left out. titles: one
    caption for each of the rows.
    """
    shown = query.select(rows)
    ids = {
        "query_person_ids": shown["person_id"][:],
        "gallery_person_ids": gallery["person_id"][:],
        "query_camera_ids": shown["camera_id"][:],
        "gallery_camera_ids": gallery["camera_id"][:],
    }
    ranking = rank_gallery(query_features[rows], gallery_features, top_k, **ids)
    images, of_gallery = ([_opener(source) for source in image_sources(part)] for part in (shown, gallery))
    ranked_sheet(path_png, images, of_gallery, ranking, query_titles=titles, title=title, columns=top_k, **ids)


def _opener(source: ImageSource) -> Callable[[], Image.Image]:
    return lambda: open_image(source)
