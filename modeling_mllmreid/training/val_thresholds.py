"""What val decides after a training: thresholds, calibration, and the fusion of distance and pair score."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from ..evaluation.calibration_fit import fit_calibration
from ..evaluation.pair_fusion_fit import fit_fusion_on_val
from ..evaluation.protocol import embed_query_gallery, same_person
from ..evaluation.threshold import Threshold
from ..evaluation.threshold_choice import choose_threshold
from ..retrieval.matching import SamePerson
from ..utils.processes import on_main
from .engines import sharding_of
from .trainer import QueryGallery, ReIDTrainer

logger = logging.getLogger(__name__)


def thresholds_on_val(trainer: ReIDTrainer, val: QueryGallery) -> dict[str, Threshold]:
    """Chooses the distance up to which a search reports a person, and fits the calibration, for each feature.

    Args:
        trainer (`ReIDTrainer`): The trainer with the trained model.
        val (`QueryGallery`): Query and gallery of val. Processes share the images.

    Returns:
        `dict[str, Threshold]`: Threshold by feature, the same in every process; none if val is too small.
    """
    options = {"batch_size": trainer.args.per_device_eval_batch_size, "progress": False}
    query, gallery = embed_query_gallery(trainer.model, trainer.processing_class, *val, **options)
    rule = same_person(*val)

    def choose() -> dict[str, Threshold]:
        persons = np.concatenate([rule.query_persons, rule.gallery_persons])
        chosen = {}
        for name, features in query.items():
            threshold = choose_threshold(features, gallery[name], rule)
            if threshold is not None:
                calibration = fit_calibration(np.concatenate([features, gallery[name]]), persons)
                chosen[name] = replace(threshold, calibration=calibration)
        return chosen

    return _with_fusion(trainer, val, query, gallery, rule, on_main(choose))


def _with_fusion(
    trainer: ReIDTrainer,
    val: QueryGallery,
    query: dict[str, np.ndarray],
    gallery: dict[str, np.ndarray],
    rule: SamePerson,
    thresholds: dict[str, Threshold],
) -> dict[str, Threshold]:
    """Returns the thresholds with the fusion of distance and pair score for the test feature, after `pair_weight`."""
    model, processor, engine = trainer.model, trainer.processing_class, sharding_of(trainer)
    feature = model.config.test_feature
    if not getattr(model.config, "pair_weight", 0):
        return thresholds
    if feature not in thresholds:
        logger.warning("no fusion of pair scores: val is too small for a threshold of the feature %r", feature)
        return thresholds
    options: dict[str, Any] = {"batch_size": trainer.args.per_device_eval_batch_size, "share": engine is None}
    features = (query[feature], gallery[feature])
    fusion = fit_fusion_on_val(model, processor, *val, *features, rule, progress=False, **options)
    return thresholds | {feature: replace(thresholds[feature], fusion=fusion)}
