"""The retrieval protocol on a data set's query and gallery splits: features, tracks, metrics, colour baseline."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image

from ..data.contract import UNKNOWN_CAMERA, camera_names, display_label, image_sources, person_names
from ..data.images import ImageSource, open_image
from ..model import ImageEncoder, ImageEncoderProcessor
from ..retrieval.distances import distance_blocks
from ..retrieval.matching import SamePerson
from ..retrieval.ranking import Ranking
from ..retrieval.sheet import ranked_sheet
from ..utils.errors import UserError
from ..utils.processes import on_main
from .embedding import embed_images
from .metrics import RetrievalMetrics, metrics_from_blocks


def color_histogram(image: Image.Image, *, stripes: int = 6, bins: int = 8) -> np.ndarray:
    """The colour-histogram feature of a person crop, (stripes * bins**3,) float32 of unit length.

    Each of the equal horizontal stripes (head, torso, legs...) gives one joint HSV histogram, the square root of its
    shares; the cosine of two features is then the mean Bhattacharyya coefficient of their stripes. No resize: shares do
    not depend on the size. A crop with fewer pixel rows than stripes leaves some of them zero.
    Source: stripes after Gray and Tao 2008; the coefficient after Comaniciu et al. 2003.
    """
    pixels = np.asarray(image.convert("RGB").convert("HSV"), dtype=np.int64) * bins // 256
    codes = (pixels[..., 0] * bins + pixels[..., 1]) * bins + pixels[..., 2]
    counts = [np.bincount(stripe.ravel(), minlength=bins**3) for stripe in np.array_split(codes, stripes)]
    roots = [np.sqrt(count / max(count.sum(), 1)) for count in counts]
    feature = np.concatenate(roots)
    return (feature / np.linalg.norm(feature)).astype(np.float32)


def color_histograms(images: Iterable[Image.Image], *, stripes: int = 6, bins: int = 8) -> np.ndarray:
    """The features of `color_histogram` for many images, (N, stripes * bins**3) float32."""
    rows = [color_histogram(image, stripes=stripes, bins=bins) for image in images]
    return np.stack(rows) if rows else np.empty((0, stripes * bins**3), dtype=np.float32)


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
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery, **options)
    return on_main(metrics_by_feature, query_features, gallery_features, same_person(query, gallery))


def embed_query_gallery(
    model: ImageEncoder, processor: ImageEncoderProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The features of the query and of the gallery images, by name. options: those of `embed_images`.

    Processes share the images; the features are on process 0, and the others have arrays without rows.
    """
    check_query_gallery(query, gallery)
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


def metrics_by_feature(
    query_features: Features, gallery_features: Features, rule: SamePerson
) -> dict[str, RetrievalMetrics]:
    """The metrics of each named feature, (Q, D) against (G, D)."""
    return {
        name: metrics_from_blocks(distance_blocks(rows, gallery_features[name]), rule)
        for name, rows in query_features.items()
    }


def histogram_metrics(query: Dataset, gallery: Dataset, rule: SamePerson) -> RetrievalMetrics:
    """The metrics of the colour histogram: what a learned feature has to pass first."""
    check_query_gallery(query, gallery)
    rows = (color_histograms(map(open_image, image_sources(part))) for part in (query, gallery))
    return metrics_from_blocks(distance_blocks(*rows), rule)


def check_query_gallery(query: Dataset, gallery: Dataset) -> None:
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


def evenly_spaced(count: int, wanted: int = 8) -> np.ndarray:
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
        ids[f"{side}_camera_ids"] = [display_label("cam", name) if name else "" for name in camera_names(part)]
    images, of_gallery = ([_opener(source) for source in image_sources(part)] for part in (shown, gallery))
    of_rows = Ranking(ranking.indices[rows], ranking.distances[rows])
    columns = ranking.indices.shape[1]
    ranked_sheet(path_png, images, of_gallery, of_rows, query_titles=titles, title=title, columns=columns, **ids)


def _opener(source: ImageSource) -> Callable[[], Image.Image]:
    return lambda: open_image(source)


@dataclass
class ProtocolFeatures:
    """Named features of the query and of the gallery rows, these rows, and the rule of which gallery rows count.

    Features are on process 0, without rows on the others; the rest is on every process.
    """

    query: dict[str, np.ndarray]
    gallery: dict[str, np.ndarray]
    query_split: Dataset
    gallery_split: Dataset
    rule: SamePerson


def protocol_features(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    dataset: DatasetDict,
    *,
    exclude: Sequence[str] = ("camera_id",),
    pool_tracks: bool = False,
    **options: Any,
) -> ProtocolFeatures:
    """The features of `query` and `gallery`, of images or where wanted of tracks.

    exclude: as in `same_person`. options: those of `embed_images`. Raises UserError for a column that is missing, and
    as `embed_query_gallery` does.
    """
    query, gallery = dataset["query"], dataset["gallery"]
    same_person(query, gallery, exclude)  # a missing column is named before the long work
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery, **options)
    if pool_tracks:
        query_features, query = _by_track(query_features, query, exclude)
        gallery_features, gallery = _by_track(gallery_features, gallery, exclude)
    return ProtocolFeatures(query_features, gallery_features, query, gallery, same_person(query, gallery, exclude))


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
