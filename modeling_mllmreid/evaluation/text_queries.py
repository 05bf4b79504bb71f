"""Search by text, and by image and text: captions against the gallery's "llm" features."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.columns import image_sources
from ..errors import UserError
from ..model import MllmReIDModel, MllmReIDProcessor
from .embedding import embed_images, eval_mode
from .metrics import RetrievalMetrics, evaluate_retrieval
from .protocol import check_parts

logger = logging.getLogger(__name__)


def embed_captions(
    model: MllmReIDModel, processor: MllmReIDProcessor, captions: Sequence[str], *, batch_size: int = 64
) -> np.ndarray:
    """The captions' latents in the space of the "llm" feature: (N, D) float32, L2-normalised, row i of captions[i].

    The model runs in eval mode and is left in the mode it was in. Says in the log where it was not trained to search by
    text (`reid_text`).
    Raises UserError where there is no caption, and naming one that holds an image token.
    """
    if not len(captions):
        raise UserError("there is no caption to embed: give at least one")
    if not model.config.reid_text:
        logger.warning(
            "the model was trained without reid_text: captions and images lie apart, and search by text is at chance"
        )
    parts = []
    with eval_mode(model), torch.inference_mode():
        for start in range(0, len(captions), batch_size):
            try:
                inputs = processor(text=list(captions[start : start + batch_size]))
            except ValueError as error:
                raise UserError(f"captions from row {start}: {error}") from error
            parts.append(model.encode_text(**inputs.to(model.device)).cpu().numpy())
    return np.concatenate(parts)


def caption_queries(query: Dataset) -> tuple[list[str], np.ndarray]:
    """Every caption of a split (N,), and the row that it stands in (N,) int64; rows without a caption ask nothing.

    Raises UserError where no row has a caption.
    """
    of_rows = query["caption"][:]
    captions = [caption for captions in of_rows for caption in captions]
    if not captions:
        raise UserError("no query has a caption: search by text needs them, give a captions_file or another data set")
    return captions, np.repeat(np.arange(len(of_rows)), [len(captions) for captions in of_rows])


def text_to_image(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    query: Dataset,
    gallery: Dataset,
    *,
    gallery_features: np.ndarray | None = None,
    batch_size: int = 64,
    **options: Any,
) -> RetrievalMetrics:
    """Every caption of the query part searches the gallery images; there is no camera rule.

    query: rows of the data contract, with one caption (CUHK-PEDES) or several. gallery_features: the gallery's "llm"
    features (G, D) where they are known already. options: further ones of `embed_images`.
    Raises UserError where no query has a caption, and where no caption's person is in the gallery.
    Source: Li et al. 2017 (CUHK-PEDES).
    """
    captions, rows = caption_queries(query)
    if gallery_features is None:
        gallery_features = _llm_features(model, processor, gallery, batch_size=batch_size, **options)
    features = embed_captions(model, processor, captions, batch_size=batch_size)
    persons = np.asarray(query["person_id"][:])[rows]
    return evaluate_retrieval(features, gallery_features, persons, gallery["person_id"][:])


def image_and_text(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    query: Dataset,
    gallery: Dataset,
    *,
    query_features: np.ndarray | None = None,
    gallery_features: np.ndarray | None = None,
    batch_size: int = 64,
    **options: Any,
) -> RetrievalMetrics:
    """Every caption of the query part searches together with its image: by the mean of the two normalised features.

    The rule of person and camera holds, as for images alone. query_features (Q, D) and gallery_features (G, D): the
    "llm" features where they are known already. options: further ones of `embed_images`.
    Raises UserError as `evaluate_model` does, and where no query has a caption.
    """
    check_parts(query, gallery)
    captions, rows = caption_queries(query)
    options["batch_size"] = batch_size
    if query_features is None:
        query_features = _llm_features(model, processor, query, **options)
    if gallery_features is None:
        gallery_features = _llm_features(model, processor, gallery, **options)
    features = (query_features[rows] + embed_captions(model, processor, captions, batch_size=batch_size)) / 2
    ids = [
        column for name in ("person_id", "camera_id") for column in (np.asarray(query[name][:])[rows], gallery[name][:])
    ]
    return evaluate_retrieval(features, gallery_features, *ids)


def _llm_features(model: MllmReIDModel, processor: MllmReIDProcessor, split: Dataset, **options: Any) -> np.ndarray:
    """The "llm" feature of a split's images, (N, D)."""
    return embed_images(model, processor, image_sources(split), names=("llm",), **options)["llm"]
