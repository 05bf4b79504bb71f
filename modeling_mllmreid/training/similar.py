"""Similar people: whom a model takes for each other before a training, for batches with hard negatives."""

from collections.abc import Sequence

import numpy as np

from ..data.images import ImageSource
from ..evaluation.embedding import embed_feature
from ..model import ImageEncoder, ImageEncoderProcessor
from ..utils.processes import on_main

# Neighbours of a person. Groups are small, and their members must not be taken yet.
NEIGHBOURS = 64
# People whose similarities are in memory at once.
BLOCK = 1024


def similar_people(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    images: Sequence[ImageSource],
    person_ids: Sequence[int],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> dict[int, list[int]]:
    """Finds the nearest other people of each person, by the mean feature of their images.

    All processes call it, share the images, and get the same result. A run that is resumed starts from the same model,
    and finds the same people.

    Args:
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model at the start of the training, which embeds by its
            test feature.
        processor (`MllmReIDProcessor` or `MllmReIDVisionProcessor`): Its processor.
        images (`Sequence`): N images.
        person_ids (`Sequence[int]`): (N,) the person of each.
        batch_size (`int`): Images of a forward pass.
        num_workers (`int`): Processes that open images.

    Returns:
        `dict[int, list[int]]`: By person, at most 64 others, the most similar first.

    Raises:
        UserError: An image cannot be opened.
    """
    options = {"batch_size": batch_size, "num_workers": num_workers, "progress": False}
    features = embed_feature(model, processor, images, **options)
    return on_main(_nearest_people, features, np.asarray(person_ids))


def _nearest_people(features: np.ndarray, person_ids: np.ndarray) -> dict[int, list[int]]:
    """Returns the nearest people by person. features (N, D), person_ids (N,)."""
    people, place = np.unique(person_ids, return_inverse=True)
    means = np.zeros((len(people), features.shape[1]))
    np.add.at(means, place, features)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    count, found = min(NEIGHBOURS, len(people) - 1), {}
    for start in range(0, len(people), BLOCK):
        similarity = means[start : start + BLOCK] @ means.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        for row, order in zip(rows, np.argsort(-similarity, axis=1, kind="stable")[:, :count], strict=True):
            found[int(people[start + row])] = people[order].tolist()
    return found
