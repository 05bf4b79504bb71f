"""`search`: the images of an embedded folder that look most like a query image."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import open_image
from ..errors import UserError
from ..evaluation.threshold import load_thresholds
from ..ranges import Count
from ..retrieval import load_embeddings, rank_gallery, ranked_sheet
from .arguments import ModelArguments
from .embed import embed_feature, probe
from .loading import load_encoder, to_device
from .options import parse

# Euclidean distance that two runs of one model may lie apart: other hardware, other kernels.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}


@dataclass
class SearchArguments:
    """The query, the embeddings, and what is shown."""

    query: str = field(metadata={"help": "Image of the person to look for."})
    embeddings: str = field(metadata={"help": "Folder written by the embed command."})
    output: str = field(default="sheet.png", metadata={"help": "PNG file for the query and what was found."})
    top_k: Count = field(default=10, metadata={"help": "How many images to show."})
    model: str | None = field(
        default=None, metadata={"help": "Where the model lies now; by default where it lay when it embedded."}
    )
    threshold: float | None = field(
        default=None,
        metadata={"help": "Cosine distance beyond which nobody is found; by default the checkpoint's, chosen on val."},
    )

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: give 1 or more")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold {self.threshold}: is no distance: give a number, for cosine 0 to 2")


def main(argv: list[str]) -> None:
    """Prints the nearest images with their cosine distances and draws them on a sheet; says where nobody is found."""
    (args,) = parse((SearchArguments,), argv, "search")
    stored = load_embeddings(args.embeddings)
    facts = stored.metadata
    if "probe" not in facts or "flip_test" not in facts:
        raise UserError(
            f"{args.embeddings}: does not say how its model made it: give a folder written by the embed command"
        )
    query = open_image(args.query)
    name = args.model or facts["model"]
    model, processor = load_encoder(ModelArguments(name, facts["revision"], facts["dtype"]), facts["fields"])
    to_device(model)
    check_same_model(name, model, processor, facts)

    threshold = args.threshold if args.threshold is not None else stored_threshold(name, facts)
    features = embed_feature(model, processor, [args.query], flip_test=facts["flip_test"], progress=False)
    ranking = rank_gallery(features, stored.features, args.top_k)
    folder = Path(facts["images"])
    paths = [folder / file_name for file_name in stored.file_names]
    title = f"Nearest of {len(paths):,} images by the feature {facts['test_feature']!r}"
    ranked_sheet(
        args.output, [query], paths, ranking, query_titles=[Path(args.query).name], title=title, columns=args.top_k
    )
    for place, (index, distance) in enumerate(zip(ranking.indices[0], ranking.distances[0], strict=True), start=1):
        if index >= 0:
            beyond = "  beyond the threshold" if threshold is not None and distance > threshold else ""
            print(f"{place:>4}  {max(distance, 0):.4f}  {stored.file_names[index]}{beyond}")
    if threshold is not None and not (ranking.distances[0] <= threshold).any():
        print(f"nobody: no image is within the threshold {threshold:.4f}; the images above are only the least unlike")
    print(f"ranked sheet: {args.output}")


def stored_threshold(name: str, facts: dict[str, Any]) -> float | None:
    """The checkpoint's threshold for the embeddings' feature, and what it promises, printed; None where it has none.

    It was chosen on the feature as the checkpoint makes it: not on mirrored images, and not with other settings.
    """
    threshold = load_thresholds(name, facts["revision"]).get(facts["test_feature"])
    if threshold is None:
        return None
    if facts["flip_test"] or set(facts["fields"]) - {"test_feature"}:
        print("threshold: the checkpoint's was chosen without these settings and is not used; --threshold gives one")
        return None
    print(
        f"threshold: {threshold.distance:.4f} [{threshold.low:.4f}, {threshold.high:.4f}]; on the validation people "
        f"{threshold.fpir:.0%} of searches for somebody absent named another, {threshold.tpir:.0%} for somebody "
        "present named the right one"
    )
    return threshold.distance


def check_same_model(name: str, model: Any, processor: Any, facts: dict[str, Any]) -> None:
    """Raises UserError where the model is not the one that made the embeddings: by feature, size or output."""
    found = {"test_feature": model.config.test_feature, "height": processor.height, "width": processor.width}
    for key, value in found.items():
        if value != facts[key]:
            raise UserError(f"model {name}: {key} is {value}, the embeddings were made with {facts[key]}: embed again")
    expected, got = np.asarray(facts["probe"]), probe(model, processor)
    if expected.shape != got.shape or np.linalg.norm(expected - got) > TOLERANCE[facts["dtype"]]:
        raise UserError(f"model {name}: not the one that made the embeddings: give that one, or embed again with this")
