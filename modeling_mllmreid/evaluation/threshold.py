"""The threshold of a search: the largest distance of an accepted image, stored with the checkpoint."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..utils.errors import Unavailable, UserError
from ..utils.json_files import Format, read_json
from ..utils.outputs import atomic_file, write_json
from ..utils.report_formats import CalibrationValues, FusionValues, ThresholdsFile
from .calibration import Calibration
from .pair_fusion import PairFusion

THRESHOLD_FILE, EARLIER_FILE = "threshold.json", "threshold.json.before"
# A checkpoint without the file, and a Hub that cannot be reached, are no errors.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


@dataclass(frozen=True)
class Threshold:
    """The largest accepted cosine distance of a search, and its rates on val or on the people of `calibrate`.

    In a larger gallery the same distance gives more false positives.

    Args:
        distance (`float`): the largest accepted distance.
        low (`float`): low end of the 95 % interval of the distance for other people; 0 if there is no interval.
        high (`float`): high end of the interval; 2 if there is none.
        fpir (`float`): share of searches for a person who is not in the gallery that find another person.
        tpir (`float`): share of searches for a person in the gallery that find that person.
        searches (`int`): number of searches.
        people (`int`): number of people among the queries.
        gallery (`int`): number of gallery images.
        metric (`str`): the distance.
        calibration (`Calibration`, *optional*): what distances mean, for groups of unknown people; None if
            there is none for these people, and in files of older versions.
        fusion (`PairFusion`, *optional*): the fusion of distance and pair score, of the feature that the model is
            tested with; None if the model was not trained with `pair_weight`, if the people are too few, and in files
            of older versions.
    """

    distance: float
    low: float
    high: float
    fpir: float
    tpir: float
    searches: int
    people: int
    gallery: int
    metric: str = "cosine"
    calibration: Calibration | None = None
    fusion: PairFusion | None = None


def save_thresholds(folder: str | os.PathLike[str], thresholds: Mapping[str, Threshold]) -> None:
    """Writes the threshold of each named feature as `threshold.json` into a checkpoint's folder."""
    write_json(Path(folder) / THRESHOLD_FILE, {name: asdict(threshold) for name, threshold in thresholds.items()})


def replace_thresholds(folder: str | os.PathLike[str], thresholds: Mapping[str, Threshold]) -> None:
    """Writes the thresholds of a checkpoint again; the file that was there stays as `threshold.json.before`.

    Raises UserError as `atomic_file`, before anything is replaced.
    """
    path = Path(folder) / THRESHOLD_FILE
    if path.is_file():
        with atomic_file(path.with_name(EARLIER_FILE)) as temporary:
            temporary.write_bytes(path.read_bytes())
    save_thresholds(folder, thresholds)


def load_thresholds(checkpoint: str, revision: str | None = None) -> dict[str, Threshold]:
    """Reads the thresholds of a checkpoint, a folder or a name on the Hub, by feature; empty if it has no file.

    Raises Unavailable if the file is not valid: NaN, a negative distance, or an interval whose ends are swapped. For a
    server it is no mistake in the request.
    """
    path = _file_of(checkpoint, revision)
    if path is None:
        return {}
    try:
        stored = read_json(path, ThresholdsFile, remedy="train again, or remove the file")
    except UserError as error:
        raise Unavailable(f"{path}: holds no thresholds ({str(error).removeprefix(f'{path}: ')})") from error
    return {
        name: Threshold(
            **_values(values, Threshold)
            | {"calibration": _calibration(values.calibration), "fusion": _fusion(values.fusion)}
        )
        for name, values in stored.items()
    }


def _file_of(checkpoint: str, revision: str | None) -> str | None:
    """Returns the path of the thresholds of a checkpoint, or None."""
    if os.path.isdir(checkpoint):
        path = os.path.join(checkpoint, THRESHOLD_FILE)
        return path if os.path.isfile(path) else None
    if os.path.isfile(checkpoint):  # an ONNX file stores none
        return None
    from transformers.utils.hub import cached_file  # takes seconds to import

    cached: str | None = cached_file(checkpoint, THRESHOLD_FILE, revision=revision, **QUIET)
    return cached


def _values(stored: Format, kind: type[Any]) -> dict[str, Any]:
    """Returns the values of a stored object for the fields of a dataclass."""
    return {field.name: getattr(stored, field.name) for field in fields(kind)}


def _calibration(stored: CalibrationValues | None) -> Calibration | None:
    """Returns a stored calibration; JSON has lists where the dataclass has tuples."""
    if stored is None:
        return None
    values = _values(stored, Calibration)
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Calibration(**values | lists)


def _fusion(stored: FusionValues | None) -> PairFusion | None:
    """Returns a stored fusion."""
    return None if stored is None else PairFusion(**_values(stored, PairFusion))
