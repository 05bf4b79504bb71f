"""`search`: finds the embedded images that are most similar to each query image."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import open_image, safe_join
from ..evaluation.embedding import embed_feature, model_fingerprint
from ..evaluation.onnx_encoder import OnnxEncoder
from ..evaluation.threshold import load_thresholds
from ..options.arguments import MethodArguments, ModelArguments, OnnxArguments
from ..options.parser import build_options, parse, read_mapping
from ..retrieval.embeddings import FEATURES_FILE, METADATA_FILE, Embeddings, fault_of_name, load_embeddings, printable
from ..retrieval.exact import Ranking
from ..retrieval.scan import Scan
from ..retrieval.sheet import decimals, ranked_sheet
from ..training.embedder import load_embedder
from ..utils.errors import UserError
from ..utils.json_files import check_content
from ..utils.outputs import check_output, is_ours
from ..utils.report_formats import EmbedMetadata

# Largest Euclidean distance between the fingerprints of one model on different hardware, by number format.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}


@dataclass
class SearchArguments:
    """The queries, the embeddings, and the ranked sheet."""

    query: list[str] = field(metadata={"help": "Image of the person to find; may be given several times."})
    embeddings: str = field(metadata={"help": "Folder written by the embed command."})
    output: str = field(default="sheet.png", metadata={"help": "PNG file for the ranked sheet."})
    top_k: int = field(
        default=10, metadata={"metavar": "N>=1", "help": "Number of images to list; the sheet shows at most 20."}
    )
    model: str | None = field(
        default=None, metadata={"help": "Folder or name of the model, if it moved since it computed the embeddings."}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "metavar": "0<=X<=2",
            "help": "Largest cosine distance of a match. Default: the threshold of the checkpoint, chosen on val.",
        },
    )

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: give 1 or more")
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold {self.threshold}: is not a cosine distance: give a number from 0 to 2")


def main(argv: list[str]) -> None:
    """Prints the nearest images with their cosine distances and draws a ranked sheet."""
    (args,) = parse((SearchArguments,), argv, "search")
    stored = load_embeddings(args.embeddings)
    metadata = read_metadata(args.embeddings, stored)
    check_sheet(args, metadata, stored.file_names)
    for query in args.query:
        open_image(query)  # before the model is loaded
    model_args = ModelArguments(args.model or metadata.model, metadata.revision, metadata.dtype)
    if args.model is None and os.path.isabs(metadata.model) and not os.path.exists(metadata.model):
        raise UserError(f"model {metadata.model}: no longer exists: give its new place with --model")
    (onnx_args,) = build_options((OnnxArguments,), metadata.onnx or {}, "search")
    model, processor = load_embedder(model_args, metadata.fields, onnx_args)
    check_same_model(model_args, model, processor, metadata)

    threshold = args.threshold
    if threshold is None and not isinstance(model, OnnxEncoder):
        threshold = stored_threshold(model_args.model, metadata)
    features = embed_feature(model, processor, args.query, flip_test=metadata.flip_test, progress=False)
    ranking = Scan.of(stored.features).ranking(features, max(min(args.top_k, len(stored.features)), 1))
    print_ranking(args.query, ranking, stored.file_names, threshold)
    title = f"Nearest of {len(stored.file_names):,} images by the feature {metadata.test_feature!r}"
    ranked_sheet(
        args.output,
        args.query,
        [_opener(metadata.images, file_name) for file_name in stored.file_names],
        ranking,
        query_titles=[Path(query).name for query in args.query],
        gallery_titles=stored.file_names,
        title=title,
        columns=args.top_k,
        threshold=threshold,
    )
    print(f"ranked sheet: {printable(args.output)}")


def check_sheet(args: SearchArguments, metadata: EmbedMetadata, file_names: Sequence[str]) -> None:
    """Raises UserError if the sheet would replace an input or a file that this package did not write."""
    name = Path(args.output).name
    gallery = [Path(metadata.images, file_name) for file_name in file_names if file_name.rpartition("/")[2] == name]
    index = [Path(args.embeddings) / file_name for file_name in (METADATA_FILE, FEATURES_FILE)]
    check_output(
        args.output,
        ours=lambda path: path.suffix.lower() != ".json" and is_ours(path),
        inputs=[*args.query, *index, *gallery],
    )


def read_metadata(folder: str, stored: Embeddings) -> EmbedMetadata:
    """Returns the metadata of the embeddings. Raises UserError if the `embed` command did not write them."""
    where = f"{Path(folder) / METADATA_FILE}: metadata"
    metadata = check_content(
        stored.metadata, EmbedMetadata, where=where, remedy="give a folder written by the embed command"
    )
    for name in ("model", "images"):
        if fault := fault_of_name(getattr(metadata, name).lstrip("/")):
            raise UserError(f"{where}: {name} {printable(getattr(metadata, name))}: {fault}: embed again")
    # The fields of a model's configuration go through the command line's own checks.
    (fields,) = build_options((MethodArguments,), read_mapping((MethodArguments,), metadata.fields, where), where)
    metadata.fields = fields.given()
    metadata.onnx = read_mapping((OnnxArguments,), metadata.onnx or {}, where)
    if len(metadata.fingerprint) != stored.features.shape[1]:
        numbers, width = len(metadata.fingerprint), stored.features.shape[1]
        raise UserError(f"{where}: fingerprint has {numbers} numbers, the embeddings {width}: embed again")
    return metadata


def print_ranking(queries: Sequence[str], ranking: Ranking, file_names: Sequence[str], threshold: float | None) -> None:
    """Prints the images of each query, nearest first, and whether any image is within the threshold."""
    for query, indices, distances in zip(queries, ranking.indices, ranking.distances, strict=True):
        if len(queries) > 1:
            print(f"query {printable(query)}")
        places = decimals(distances)
        for place, (index, distance) in enumerate(zip(indices, distances, strict=True), start=1):
            if index >= 0:
                beyond = "  beyond the threshold" if threshold is not None and distance > threshold else ""
                print(f"{place:>4}  {distance:.{places}f}  {file_names[index]}{beyond}")
        if threshold is not None and not (distances <= threshold).any():
            value = f"{threshold:.{decimals([threshold])}f}"
            print(f"nobody: no image is within the threshold {value}; the images above are only the most similar ones")


def stored_threshold(name: str, metadata: EmbedMetadata) -> float | None:
    """Returns the checkpoint's threshold for the feature of the embeddings, or None; prints its rates or why not.

    A threshold is valid for the settings it was chosen with: without mirrored images, without other fields.
    """
    threshold = load_thresholds(name, metadata.revision).get(metadata.test_feature)
    if threshold is None:
        print("threshold: the model has none: choose one with the command calibrate, or give one with --threshold")
        return None
    if metadata.flip_test or set(metadata.fields) - {"test_feature"} or threshold.metric != "cosine":
        print("threshold: the checkpoint's was chosen with other settings and is not used: give one with --threshold")
        return None
    places = decimals([threshold.distance])
    values = (f"{value:.{places}f}" for value in (threshold.distance, threshold.low, threshold.high))
    print(
        "threshold: {} [{}, {}]; on the people that it was chosen on, ".format(*values)
        + f"{threshold.fpir:.0%} of searches for an absent person found another one, {threshold.tpir:.0%} for a "
        "present person found the right one"
    )
    return threshold.distance


def check_same_model(arguments: ModelArguments, model: Any, processor: Any, metadata: EmbedMetadata) -> None:
    """Raises UserError if another model computed the embeddings: by feature, size, file or fingerprint."""
    name = arguments.model
    found = {"test_feature": model.config.test_feature, "height": processor.height, "width": processor.width}
    for key, value in found.items():
        stored = getattr(metadata, key)
        if value != stored:
            raise UserError(f"model {name}: {key} is {value}, the embeddings were computed with {stored}: embed again")
    if isinstance(model, OnnxEncoder) and metadata.weights != model.file.digest:
        raise UserError(f"model {name}: is another file than the one of the embeddings: give that file, or embed again")
    expected, got = np.asarray(metadata.fingerprint), model_fingerprint(model, processor)
    tolerance = TOLERANCE[arguments.dtype_name]
    # Written so that NaN, from a diverged model, is refused too.
    if expected.shape != got.shape or not np.linalg.norm(expected - got) <= tolerance:
        raise UserError(f"model {name}: did not compute the embeddings: give the model that did, or embed again")


def _opener(folder: str, file_name: str) -> Callable[[], Image.Image]:
    """Returns a function that opens an image inside the embedded folder."""
    return lambda: open_image(safe_join(folder, file_name))
