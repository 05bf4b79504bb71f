"""Search by words: every caption a query against the gallery's images, alone or together with its image."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..model import MllmReIDModel, MllmReIDProcessor
from ..utils.errors import UserError
from .embedding import eval_mode, features_on_main, own_batches
from .metrics import RetrievalMetrics, evaluate_retrieval

# The image feature that captions share their space with.
TEXT_FEATURE = "llm"


def embed_captions(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    captions: Sequence[str],
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """The captions' latents in the space of the "llm" image feature, (N, D) float32 and L2-normalised.

    They lie near the images only where the model was trained with `reid_text`. Processes share the captions as they do
    images (`embed_images`): process 0 gets all latents, the others none, (0, D).
    Raises UserError where there is no caption.
    """
    if not len(captions):
        raise UserError("there is no caption to embed: give a data set with captions")

    def latents_of(batch: list[int]) -> dict[str, Tensor]:
        inputs = processor(text=[captions[row] for row in batch])
        return {TEXT_FEATURE: model.encode_text(**inputs)}

    share = own_batches(len(captions), batch_size)
    with eval_mode(model), torch.inference_mode():
        rows = features_on_main(latents_of, share, len(captions), unit="caption", progress=progress)
    return rows[TEXT_FEATURE]


def caption_queries(query: Dataset) -> tuple[list[str], np.ndarray]:
    """Every caption of a query part, and the row (captions,) that each is of."""
    pairs = [(caption, row) for row, captions in enumerate(query["caption"][:]) for caption in captions]
    return [caption for caption, _ in pairs], np.array([row for _, row in pairs], dtype=np.int64)


def text_to_image(
    caption_features: np.ndarray,
    rows: np.ndarray,
    gallery_features: np.ndarray,
    query: Dataset,
    gallery: Dataset,
) -> RetrievalMetrics:
    """The metrics of captions (C, D) of these query rows (C,) against the gallery's "llm" features (G, D).

    Every caption is a query, no camera rule: the protocol of CUHK-PEDES (Li et al. 2017).
    """
    persons = np.asarray(query["person_id"][:])[rows]
    return evaluate_retrieval(caption_features, gallery_features, persons, gallery["person_id"][:])


def image_and_text(
    caption_features: np.ndarray,
    rows: np.ndarray,
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    query: Dataset,
    gallery: Dataset,
) -> RetrievalMetrics:
    """The metrics of queries that are an image and a caption of it: the mean of the two normalised features.

    caption_features: (C, D) of these query rows (C,); query_features: (Q, D) and gallery_features: (G, D), "llm".
    Gallery images of the query's person and camera are dropped, as for images alone.
    """
    persons, cameras = (np.asarray(query[column][:])[rows] for column in ("person_id", "camera_id"))
    ids = (persons, gallery["person_id"][:], cameras, gallery["camera_id"][:])
    return evaluate_retrieval((query_features[rows] + caption_features) / 2, gallery_features, *ids)
