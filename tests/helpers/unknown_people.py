"""Crops of unknown people for tests: features around a random direction for each person."""

import numpy as np

from modeling_mllmreid.evaluation.calibration import Calibration
from modeling_mllmreid.gallery.groups import Crops

# Log odds of 0 at a distance of 0.5 for two crops with half their neighbourhood in common.
CALIBRATION = Calibration((0.0, 1.0), (6.0, -6.0), (6.0, -16.0, 4.0, 0.0, 0.2), 1.5, 0.95, 0.6, 20, 100)


def features_of(persons: np.ndarray, noise: float = 0.6, width: int = 32, seed: int = 0) -> np.ndarray:
    """L2-normalised features (N, width) float32."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(int(persons.max(initial=-1)) + 1, width))
    features = directions[persons] + noise * random.normal(size=(len(persons), width))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def crops_of(features: np.ndarray, camera_id=None, seconds=None, track_id=None) -> Crops:
    """Crops whose ids are in their order; cameras, times and tracks are unknown if they are not given."""
    size = len(features)
    unknown = np.full(size, -1)
    times = np.full(size, "NaT", "datetime64[us]")
    if seconds is not None:
        known = np.array([value is not None for value in seconds], dtype=bool)
        milliseconds = np.array([round(1000 * value) for value in seconds if value is not None], "timedelta64[ms]")
        times[known] = np.datetime64("2026-11-28T09:00", "us") + milliseconds
    return Crops(
        np.array([f"crop{index:04d}" for index in range(size)], dtype=object),
        features,
        unknown if camera_id is None else np.asarray(camera_id, np.int64),
        times,
        unknown if track_id is None else np.asarray(track_id, np.int64),
    )
