"""The retrieval protocol on a data set's query and gallery parts: a row of metrics for each feature, from one pass."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.columns import UNKNOWN_CAMERA, camera_names, image_sources, labelled, person_names
from ..data.images import ImageSource, open_image
from ..errors import UserError
from ..model import ImageEncoder, ImageEncoderProcessor
from ..processes import on_main
from ..retrieval import Ranking, SamePerson, distance_blocks, ranked_sheet
from .color_histogram import color_histograms
from .embedding import embed_images
from .metrics import RetrievalMetrics, metrics_from_blocks

Features = Mapping[str, np.ndarray]


def evaluate_model(
    model: ImageEncoder, processor: ImageEncoderProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> dict[str, RetrievalMetrics]:
    """The metrics of each test feature ("llm", "vision", "concat"), from one pass over the images.

    query, gallery: splits of the data contract. Gallery images of the query's person and camera are dropped, an unknown
    camera (-1) being no camera's match. options: those of `embed_images`. Processes share the images, process 0
    computes the metrics, and every process gets them.
    Raises UserError for an empty part, a broken image, and for queries that would find themselves.
    """
    query_features, gallery_features = embed_parts(model, processor, query, gallery, **options)
    return on_main(metrics_of_features, query_features, gallery_features, same_person(query, gallery))


def embed_parts(
    model: ImageEncoder, processor: ImageEncoderProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The features of the query and of the gallery images, by name. options: those of `embed_images`.

    Processes share the images; the features are on process 0, and the others have arrays without rows.
    """
    check_parts(query, gallery)
    features = embed_images(model, processor, [*image_sources(query), *image_sources(gallery)], **options)
    return (
        {name: rows[: len(query)] for name, rows in features.items()},
        {name: rows[len(query) :] for name, rows in features.items()},
    )


def same_person(query: Dataset, gallery: Dataset, exclude: Sequence[str] = ("camera_id",)) -> SamePerson:
    """The rule of the protocol: a match is of the query's person, and dropped where one of these columns is the same.

    exclude: "camera_id", "clothes_id", both, or none. Raises UserError for a column that a part does not have.
    """
    for name, part in (("query", query), ("gallery", gallery)):
        for column in exclude:
            if column not in part.column_names:
                raise UserError(f"exclude: the {name} part has no column {column}: add it, or leave it out of exclude")
    columns = {
        f"{side}_{column}s": part[column][:]
        for column in ("person_id", *exclude)
        for side, part in (("query", query), ("gallery", gallery))
    }
    return SamePerson(**columns)


def metrics_of_features(
    query_features: Features, gallery_features: Features, rule: SamePerson
) -> dict[str, RetrievalMetrics]:
    """The metrics of each named feature, (Q, D) against (G, D)."""
    return {
        name: metrics_from_blocks(distance_blocks(rows, gallery_features[name]), rule)
        for name, rows in query_features.items()
    }


def histogram_row(query: Dataset, gallery: Dataset, rule: SamePerson) -> RetrievalMetrics:
    """The metrics of the colour histogram: what a learned feature has to pass first."""
    check_parts(query, gallery)
    rows = (color_histograms(map(open_image, image_sources(part))) for part in (query, gallery))
    return metrics_from_blocks(distance_blocks(*rows), rule)


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
    ranking: Ranking,
    rows: np.ndarray,
    query: Dataset,
    gallery: Dataset,
    *,
    titles: Sequence[str] | None = None,
    title: str = "Nearest gallery images",
) -> None:
    """A ranked sheet of these rows (n,) of the query part. ranking: of all queries. titles: a caption for each row."""
    shown = query.select(rows)
    ids: dict[str, Any] = {"gallery_titles": gallery["file_name"][:]}
    # Numbers of people say nothing that the frames' colours do not; of two sets, two people may have one name.
    named = all("person_name" in part.column_names for part in (shown, gallery))
    people = {pair for part in (shown, gallery) for pair in zip(part["person_id"][:], person_names(part), strict=True)}
    named = named and len(people) == len({name for _, name in people})
    for side, part in (("query", shown), ("gallery", gallery)):
        ids[f"{side}_person_ids"] = person_names(part) if named else part["person_id"][:]
        ids[f"{side}_camera_ids"] = [labelled("cam", name) if name else "" for name in camera_names(part)]
    images, of_gallery = ([_opener(source) for source in image_sources(part)] for part in (shown, gallery))
    of_rows = Ranking(ranking.indices[rows], ranking.distances[rows])
    columns = ranking.indices.shape[1]
    ranked_sheet(path_png, images, of_gallery, of_rows, query_titles=titles, title=title, columns=columns, **ids)


def _opener(source: ImageSource) -> Callable[[], Image.Image]:
    return lambda: open_image(source)
