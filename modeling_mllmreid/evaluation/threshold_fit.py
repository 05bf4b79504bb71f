"""What labelled people decide for each feature of a model: threshold, calibration, and the fusion with pair scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval.matching import SamePerson
from ..utils.processes import on_main
from .calibration_fit import fit_calibration
from .pair_fusion_fit import TooFewPeople, fit_fusion_of_shortlists
from .protocol import embed_query_gallery, same_person
from .threshold import Threshold
from .threshold_choice import choose_threshold
from .torch_embedding import Encoder, EncoderProcessor


class FittedThresholds(NamedTuple):
    """Result of `fit_thresholds`.

    Args:
        thresholds (`dict[str, Threshold]`): by feature; none where the people are too few for one.
        no_fusion (`str`, *optional*): why a model that was trained with `pair_weight` has no fusion.
    """

    thresholds: dict[str, Threshold]
    no_fusion: str | None = None


def fit_thresholds(
    model: Encoder,
    processor: EncoderProcessor,
    query: Dataset,
    gallery: Dataset,
    *,
    share: bool = True,
    **options: Any,
) -> FittedThresholds:
    """Chooses the distance up to which a search reports a person, and fits the calibration, for each feature.

    A model that was trained with `pair_weight` gets the fusion of distance and pair score for its test feature. All
    processes of a run call it, and get the same result.

    Args:
        model (`Encoder`): the model.
        processor (`EncoderProcessor`): its processor.
        query, gallery (`Dataset`): images of people who are not in the training. Processes share them.
        share (`bool`, defaults to `True`): as in `fit_fusion_of_shortlists`.
        options: `batch_size`, `num_workers` and `progress` of `embed_images` and `score_shortlist`.

    Returns:
        `FittedThresholds`

    Raises:
        UserError: if a split is empty, or an image is broken.
    """
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery, **options)
    rule = same_person(query, gallery)
    thresholds = on_main(_choose_thresholds, query_features, gallery_features, rule)
    if not isinstance(model, MllmReIDModel) or not model.config.pair_weight:
        return FittedThresholds(thresholds)
    feature = model.config.test_feature
    if feature not in thresholds:
        return FittedThresholds(thresholds, f"too few people for a threshold of the feature {feature!r}")
    assert isinstance(processor, MllmReIDProcessor)
    features = (query_features[feature], gallery_features[feature])
    try:
        fusion = fit_fusion_of_shortlists(model, processor, query, gallery, *features, rule, share=share, **options)
    except TooFewPeople as error:
        return FittedThresholds(thresholds, str(error))
    return FittedThresholds(thresholds | {feature: replace(thresholds[feature], fusion=fusion)})


def _choose_thresholds(
    query: Mapping[str, np.ndarray], gallery: Mapping[str, np.ndarray], rule: SamePerson
) -> dict[str, Threshold]:
    """Returns the threshold and the calibration of each feature, (Q, D) against (G, D)."""
    persons = np.concatenate([rule.query_persons, rule.gallery_persons])
    chosen = {}
    for name, features in query.items():
        threshold = choose_threshold(features, gallery[name], rule)
        if threshold is not None:
            calibration = fit_calibration(np.concatenate([features, gallery[name]]), persons)
            chosen[name] = replace(threshold, calibration=calibration)
    return chosen
