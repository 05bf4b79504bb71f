"""Text-to-image retrieval: captions as queries, alone or together with their images."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval.points import Features
from ..utils.errors import UserError
from .metrics import RetrievalMetrics, evaluate_retrieval
from .shares import features_on_main, own_batches
from .torch_embedding import as_arrays, eval_mode

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
    """Computes features of captions in the space of the "llm" image feature.

    They are near those of the images only if the model was trained with `reid_text`. Processes share the captions.

    Args:
        model (`MllmReIDModel`): the model.
        processor (`MllmReIDProcessor`): its processor.
        captions (`Sequence[str]`): N captions.
        batch_size (`int`, defaults to 64): captions per forward pass.
        progress (`bool`, defaults to `True`): whether to show a progress bar.

    Returns:
        `np.ndarray`: (N, D) float32, L2-normalised, on process 0; (0, D) on others.

    Raises:
        UserError: if there is no caption.
    """
    if not len(captions):
        raise UserError("there is no caption to embed: give a data set with captions")

    def embed(batch: list[int]) -> dict[str, np.ndarray]:
        inputs = processor(text=[captions[index] for index in batch])
        return as_arrays({TEXT_FEATURE: model.encode_text(**inputs)})

    share = own_batches(len(captions), batch_size)
    with eval_mode(model), torch.inference_mode():
        features = features_on_main(embed, share, len(captions), unit="caption", progress=progress)
    return features[TEXT_FEATURE]


def caption_queries(query: Dataset) -> tuple[list[str], np.ndarray]:
    """Returns all captions of a query split, and the index of each caption's query, (C,)."""
    pairs = [(caption, query_index) for query_index, captions in enumerate(query["caption"][:]) for caption in captions]
    return [caption for caption, _ in pairs], np.array([query_index for _, query_index in pairs], dtype=np.int64)


def text_to_image(
    caption_features: np.ndarray,
    query_indices: np.ndarray,
    gallery_features: Features,
    query: Dataset,
    gallery: Dataset,
) -> RetrievalMetrics:
    """Computes the metrics of captions (C, D) of the queries `query_indices` (C,) against "llm" features (G, D).

    Every caption is a query, and no image is dropped for its camera: the protocol of CUHK-PEDES.

    Source: Li et al. 2017.
    """
    persons = np.asarray(query["person_id"][:])[query_indices]
    return evaluate_retrieval(caption_features, gallery_features, persons, gallery["person_id"][:])


def image_and_text(
    caption_features: np.ndarray,
    query_indices: np.ndarray,
    query_features: np.ndarray,
    gallery_features: Features,
    query: Dataset,
    gallery: Dataset,
) -> RetrievalMetrics:
    """Computes the metrics of queries that are an image and its caption: the mean of the two normalised features.

    caption_features are (C, D), of the queries `query_indices` (C,); query_features (Q, D) and gallery_features (G, D)
    are "llm". Gallery images of the query's person and camera are dropped.
    """
    persons, cameras = (np.asarray(query[column][:])[query_indices] for column in ("person_id", "camera_id"))
    ids = (persons, gallery["person_id"][:], cameras, gallery["camera_id"][:])
    return evaluate_retrieval((query_features[query_indices] + caption_features) / 2, gallery_features, *ids)
