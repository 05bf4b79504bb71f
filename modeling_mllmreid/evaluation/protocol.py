"""The retrieval protocol on a data set's query and gallery splits: features, tracks, metrics, colour baseline."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from ..data.contract import UNKNOWN_CAMERA, camera_names, display_label, image_sources, person_names
from ..data.images import ImageSource, open_image
from ..retrieval.distances import distance_blocks
from ..retrieval.exact import Ranking
from ..retrieval.matching import SamePerson
from ..retrieval.points import EXACT_DEVICES
from ..retrieval.sheet import ranked_sheet
from ..utils.errors import UserError
from ..utils.processes import on_main
from .embedding import embed_images
from .metrics import RetrievalMetrics, metrics_from_blocks
from .torch_embedding import Encoder, EncoderProcessor


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
    normalized: np.ndarray = (feature / np.linalg.norm(feature)).astype(np.float32)
    return normalized


def color_histograms(images: Iterable[Image.Image], *, stripes: int = 6, bins: int = 8) -> np.ndarray:
    """The features of `color_histogram` for many images, (N, stripes * bins**3) float32."""
    rows = [color_histogram(image, stripes=stripes, bins=bins) for image in images]
    return np.stack(rows) if rows else np.empty((0, stripes * bins**3), dtype=np.float32)


NO_TRACK = -1


def pool_tracks(
    features: np.ndarray, track_ids: Sequence[int] | np.ndarray, *ids: Sequence[Any] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Averages the features of each track. Tracks are in the order of their first image.

    Args:
        features (`np.ndarray`): (N, D), L2-normalised.
        track_ids (`Sequence[int]` or `np.ndarray`): (N,) track ids; an image of track -1 has no track and stays alone.
        ids (`Sequence` or `np.ndarray`): any number of (N,) ids, such as person and camera, constant within a track.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: features of the tracks (T, D) float32, L2-normalised, and the index of each
        track's first image (T,).

    Raises:
        UserError: if the counts differ, or a track has two persons or cameras.
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


Features = Mapping[str, np.ndarray | torch.Tensor]


def evaluate_model(
    model: Encoder, processor: EncoderProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> dict[str, RetrievalMetrics]:
    """Computes the metrics of each test feature ("llm", "vision", "concat") in one pass over the images.

    Gallery images of the query's person and camera are dropped. Processes share the images, process 0 computes the
    metrics, and every process gets them.

    Args:
        model (`Encoder`): the model, in its full or vision form.
        processor (`EncoderProcessor`): its processor.
        query (`Dataset`): the query split.
        gallery (`Dataset`): the gallery split.
        options: options of `embed_images`.

    Returns:
        `dict[str, RetrievalMetrics]`: the metrics by feature.

    Raises:
        UserError: if a split is empty, an image is broken, or a query of unknown camera is also in the gallery.
    """
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery, **options)
    return on_main(metrics_by_feature, query_features, on_gpu(gallery_features, model), same_person(query, gallery))


def on_gpu(features: Mapping[str, np.ndarray], model: Encoder) -> Features:
    """Moves features to the GPU that the model is on, where they are ranked; returns them as they are without one."""
    device = getattr(model, "device", torch.device("cpu"))  # an ONNX model has none
    if device.type not in EXACT_DEVICES:
        return features
    return {name: torch.from_numpy(rows).to(device) for name, rows in features.items()}


def embed_query_gallery(
    model: Encoder, processor: EncoderProcessor, query: Dataset, gallery: Dataset, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Computes the features of the query and the gallery images, by name.

    Processes share the images. Process 0 gets the features, the others get empty arrays. `options` are those of
    `embed_images`.
    """
    check_query_gallery(query, gallery)
    features = embed_images(model, processor, [*image_sources(query), *image_sources(gallery)], **options)
    return (
        {name: rows[: len(query)] for name, rows in features.items()},
        {name: rows[len(query) :] for name, rows in features.items()},
    )


def same_person(query: Dataset, gallery: Dataset, exclude: Sequence[str] = ("camera_id",)) -> SamePerson:
    """Returns the matching rule: a match has the query's person, and is dropped if it also has the same excluded id.

    `exclude` holds "camera_id", "clothes_id", both or none. Raises UserError if a split lacks such a column.
    """
    for name, split in (("query", query), ("gallery", gallery)):
        for column in exclude:
            if column not in split.column_names:
                raise UserError(f"exclude: the {name} split has no column {column}: add it, or leave it out of exclude")
    columns = {
        f"{side}_{column}s": split[column][:]
        for column in ("person_id", *exclude)
        for side, split in (("query", query), ("gallery", gallery))
    }
    return SamePerson(**columns)


def metrics_by_feature(
    query_features: Features, gallery_features: Features, rule: SamePerson
) -> dict[str, RetrievalMetrics]:
    """Computes the metrics of each named feature, (Q, D) against (G, D)."""
    return {
        name: metrics_from_blocks(distance_blocks(features, gallery_features[name]), rule)
        for name, features in query_features.items()
    }


def histogram_metrics(query: Dataset, gallery: Dataset, rule: SamePerson) -> RetrievalMetrics:
    """Computes the metrics of the colour histogram, the baseline that a learned feature must exceed."""
    check_query_gallery(query, gallery)
    features = (color_histograms(map(open_image, image_sources(split))) for split in (query, gallery))
    return metrics_from_blocks(distance_blocks(*features), rule)


def check_query_gallery(query: Dataset, gallery: Dataset) -> None:
    """Raises UserError if a split is empty, or an image of unknown camera is both a query and in the gallery.

    The matching rule cannot drop it, so the query would find itself first and the score would mean nothing. Data sets
    whose queries are captions (CUHK-PEDES) have such images.
    """
    for name, split in (("query", query), ("gallery", gallery)):
        if not len(split):
            raise UserError(f"the {name} split has no image: give a data set with query and gallery images")
    in_gallery = set(zip(gallery["source"][:], gallery["file_name"][:], strict=True))
    columns = (query[column][:] for column in ("source", "file_name", "camera_id"))
    for source, file_name, camera_id in zip(*columns, strict=True):
        if camera_id == UNKNOWN_CAMERA and (source, file_name) in in_gallery:
            raise UserError(
                f"query image {file_name} is in the gallery too, of unknown camera: it would find itself; "
                "give other images as queries, or camera ids"
            )


def evenly_spaced(count: int, most: int = 8) -> np.ndarray:
    """Returns at most `most` of `count` indices, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, num=min(most, count)).round().astype(int))


def draw_queries(
    path_png: str | os.PathLike[str],
    ranking: Ranking,
    indices: np.ndarray,
    query: Dataset,
    gallery: Dataset,
    *,
    titles: Sequence[str] | None = None,
    title: str = "Nearest gallery images",
) -> None:
    """Draws a ranked sheet of these queries, indices (n,) of the split, with a title for each.

    `ranking` is that of all queries.
    """
    drawn = query.select(indices)
    ids: dict[str, Any] = {"gallery_titles": gallery["file_name"][:]}
    # The frames' colours already show which numbers agree. In two data sets two people may have the same name.
    splits = (drawn, gallery)
    named = all("person_name" in split.column_names for split in splits)
    people = {pair for split in splits for pair in zip(split["person_id"][:], person_names(split), strict=True)}
    named = named and len(people) == len({name for _, name in people})
    for prefix, split in (("query", drawn), ("gallery", gallery)):
        ids[f"{prefix}_person_ids"] = person_names(split) if named else split["person_id"][:]
        ids[f"{prefix}_camera_ids"] = [display_label("cam", name) if name else "" for name in camera_names(split)]
    query_images, gallery_images = ([_opener(source) for source in image_sources(split)] for split in splits)
    drawn_ranking = Ranking(ranking.indices[indices], ranking.distances[indices])
    columns = ranking.indices.shape[1]
    ranked_sheet(
        path_png, query_images, gallery_images, drawn_ranking, query_titles=titles, title=title, columns=columns, **ids
    )


def _opener(source: ImageSource) -> Callable[[], Image.Image]:
    return lambda: open_image(source)


@dataclass
class ProtocolFeatures:
    """Features of the query and the gallery by name, their splits, and the matching rule.

    Features are on process 0 and empty on the others; the rest is on every process.
    """

    query: dict[str, np.ndarray]
    gallery: Features
    query_split: Dataset
    gallery_split: Dataset
    rule: SamePerson


def protocol_features(
    model: Encoder,
    processor: EncoderProcessor,
    dataset: DatasetDict,
    *,
    exclude: Sequence[str] = ("camera_id",),
    pool_tracks: bool = False,
    **options: Any,
) -> ProtocolFeatures:
    """Computes the features of the splits `query` and `gallery`, of images or of tracks.

    `exclude` is that of `same_person`, `options` are those of `embed_images`. Raises UserError if a column is missing,
    and as `embed_query_gallery`.
    """
    query, gallery = dataset["query"], dataset["gallery"]
    same_person(query, gallery, exclude)  # reports a missing column before the long work
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery, **options)
    if pool_tracks:
        query_features, query = _by_track(query_features, query, exclude)
        gallery_features, gallery = _by_track(gallery_features, gallery, exclude)
    rule = same_person(query, gallery, exclude)
    return ProtocolFeatures(query_features, on_gpu(gallery_features, model), query, gallery, rule)


def _by_track(
    features: dict[str, np.ndarray], split: Dataset, exclude: Sequence[str]
) -> tuple[dict[str, np.ndarray], Dataset]:
    """Returns the features of tracks, and the split with only their first images."""
    if "track_id" not in split.column_names:
        raise UserError("pool_tracks: the data set has no column track_id: add it, or leave pool_tracks out")
    ids = [split[column][:] for column in ("track_id", "person_id", *exclude)]
    # By the ids alone: only process 0 has features.
    _, first = pool_tracks(np.empty((len(split), 0)), *ids)
    pooled = {name: pool_tracks(values, *ids)[0] if len(values) else values for name, values in features.items()}
    return pooled, split.select(first)
