"""What searches and deletions of a gallery return."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .erasure import Traces
from .filters import live
from .rows import CropInfo, Rows


@dataclass(frozen=True)
class Hit:
    """A row that a search found.

    Args:
        id (`str`): SHA-256 of the image file.
        distance (`float`): Cosine distance to the query.
        beyond (`bool`): Whether the distance is beyond the threshold.
        crop ([`CropInfo`]): What is known about the image.
        file_name (`str`, *optional*): The image file, where the gallery keeps its name.
        probability (`float`, *optional*): That the row shows the person of the query, see `probability_note`; of rows
            that were verified.
    """

    id: str
    distance: float
    beyond: bool
    crop: CropInfo
    file_name: str | None
    probability: float | None = None


@dataclass(frozen=True)
class Verification:
    """How the nearest rows of a search were verified.

    Args:
        rows (`int`): Number of rows that were compared with the query.
        unopened (`list[str]`): Ids of the rows among them whose picture is gone, broken or another one. They follow the
            rows that were compared.
        top (`int`): Number of nearest rows for which the probability was calibrated.
        gallery (`int`): Number of rows that they are the nearest of, for the probability.
    """

    rows: int
    unopened: list[str]
    top: int
    gallery: int


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Args:
        hits (`list[Hit]`): The nearest rows, nearest first; equal distances by id. Re-ranking and verification give
            another order.
        threshold (`float`, *optional*): Distance beyond which nobody is found.
        searched (`int`): Number of rows that meet the conditions.
        verification ([`Verification`], *optional*): How the nearest rows were verified.
        nobody (`bool`): Whether no hit is within the threshold.
    """

    hits: list[Hit]
    threshold: float | None
    searched: int
    verification: Verification | None = None

    @property
    def nobody(self) -> bool:
        """Whether there is a threshold and no hit within it; verification does not change it."""
        return self.threshold is not None and all(hit.beyond for hit in self.hits)


@dataclass(frozen=True)
class Erased:
    """The result of a deletion.

    Args:
        rows (`int`): Rows that were erased.
        files (`list[str]`): Image files that were deleted.
        traces ([`Traces`]): What is left of the rows in the files of the gallery.
    """

    rows: int
    files: list[str]
    traces: Traces


def counted(count: int, noun: str) -> str:
    """Returns a number of things as text, such as "1 row" or "2,000 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def probability_note(top: int, gallery: int) -> str:
    """Returns for which pairs a probability of `PairFusion` holds."""
    return (
        f"holds for a query and one of its {top} nearest of {counted(gallery, 'image')}, if each person has about as "
        "many as in val"
    )


def hit_of(rows: Rows, place: int, distance: float, threshold: float | None) -> Hit:
    """Returns a row as a hit."""
    values = {name: column[place] for name, column in rows.columns.items()}
    for name in ("time", "expires"):
        values[name] = None if np.isnat(values[name]) else f"{values[name]}Z"
    crop = CropInfo(**{name: values[name] for name in asdict(CropInfo())})
    beyond = threshold is not None and not distance <= threshold
    return Hit(values["id"], float(distance), beyond, crop, values["file_name"])


def summary(rows: Rows) -> dict[str, Any]:
    """Returns counts: rows, expired ones, named persons, rows of each camera; and the first and the last time."""
    cameras, counts = np.unique(rows.columns["camera_id"], return_counts=True)
    times = rows.columns["time"][~np.isnat(rows.columns["time"])].astype("datetime64[s]")
    return {
        "rows": len(rows),
        "expired": int((~live(rows)).sum()),
        "persons": len({name for name in rows.columns["person"] if name}),
        "cameras": dict(zip(cameras.tolist(), counts.tolist(), strict=True)),
        "first": f"{times.min()}Z" if len(times) else None,
        "last": f"{times.max()}Z" if len(times) else None,
    }
