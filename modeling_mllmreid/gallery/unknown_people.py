"""The groups of unknown people in a gallery, with what a human has named."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.outputs import atomic_file, check_new_file
from .constraints import Rules
from .duplicates import near_duplicates
from .filters import Where, live
from .gallery import Gallery
from .groups import Crops, UnknownPeople, find_groups
from .pictures import openers
from .rows import Rows


def gallery_groups(
    gallery: Gallery,
    where: Where,
    *,
    confidence: float | None = None,
    travel_seconds: float = 1.0,
    overlapping: Sequence[tuple[int, int]] = (),
) -> tuple[Rows, UnknownPeople]:
    """Groups rows that are probably one person.

    Rows that a human has given one name are one person, and rows with two names are two. A track in which rows have two
    names joins nothing: a tracker may go on with another person.

    Args:
        gallery ([`Gallery`]): The gallery.
        where ([`Where`]): Which rows; expired ones are left out.
        confidence (`float`, *optional*): Probability from which groups are joined; by default the suggested one.
        travel_seconds (`float`): Crops of two cameras that are nearer in time are two people.
        overlapping (`Sequence[tuple[int, int]]`): Pairs of cameras that see the same place, without this rule.

    Returns:
        `tuple[Rows, UnknownPeople]`: The rows that meet the conditions, and their groups in this order.

    Raises:
        UserError: The model has no calibration, or names or tracks contradict cameras and times.
    """
    calibration = gallery.encoder.calibration()
    if calibration is None:
        raise UserError(
            f"groups: model {gallery.metadata.model} has no calibration: train it with validation people, which stores "
            "one in its threshold.json, or run calibrate"
        )
    rows = gallery.rows()
    rows = rows.part(where.mask(rows) & live(rows))
    named = rows.columns["person"]
    first: dict[str, str] = {}
    same = [(first.setdefault(name, own), own) for own, name in zip(rows.ids, named, strict=True) if name]
    leaders = list(first.values())
    different = [(one, other) for place, one in enumerate(leaders) for other in leaders[:place]]
    rules = Rules(same, different, np.timedelta64(round(1e6 * travel_seconds), "us"), list(overlapping))
    crops = Crops(rows.ids, rows.features, rows.columns["camera_id"], rows.columns["time"], _tracks(rows))
    return rows, find_groups(crops, calibration, rules, confidence=confidence)


def _tracks(rows: Rows) -> np.ndarray:
    """Returns the track of each row, (N,); -1 where a human has given rows of one track two names."""
    names: dict[tuple[int, int], set[str]] = {}
    tracks = list(zip(rows.columns["camera_id"].tolist(), rows.columns["track_id"].tolist(), strict=True))
    for track, name in zip(tracks, rows.columns["person"], strict=True):
        if name:
            names.setdefault(track, set()).add(name)
    split = np.array([len(names.get(track, ())) > 1 for track in tracks], dtype=bool)
    return np.where(split, -1, rows.columns["track_id"])


def largest_groups(rows: Rows, found: UnknownPeople) -> dict[int, list[str]]:
    """Returns the ids of each group of two or more rows by its number, the largest group first."""
    order = np.argsort(found.labels, kind="stable")
    numbers, starts = np.unique(found.labels[order], return_index=True)
    members = dict(zip(numbers.tolist(), np.split(rows.ids[order], starts[1:]), strict=True)) if len(rows) else {}
    largest = sorted(members, key=lambda number: (-len(members[number]), number))
    return {number: members[number].tolist() for number in largest if len(members[number]) > 1}


def duplicates(gallery: Gallery, found: UnknownPeople) -> list[tuple[str, str]]:
    """Returns the ids of pairs of rows that are almost the same picture. Raises UserError for a missing picture."""
    hits = {hit.id: hit for hit in gallery.find(Where(ids=sorted({name for pair in found.close for name in pair})))}

    def open_picture(name: str) -> Image.Image:
        return openers(gallery, [hits[name]])[0]()

    return near_duplicates(found.close, open_picture)


def write_groups(path: str | os.PathLike[str], rows: Rows, found: UnknownPeople) -> None:
    """Writes the group of each row as CSV. Raises UserError if the file exists or cannot be written."""
    check_new_file(path)
    with atomic_file(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "id", "file_name", "person"])
        columns = (rows.ids, rows.columns["file_name"], rows.columns["person"])
        for group, *values in sorted(zip(found.labels.tolist(), *columns, strict=True), key=lambda row: row[:2]):
            writer.writerow([group, *(value or "" for value in values)])


def read_groups(path: str | os.PathLike[str], groups: Sequence[int]) -> list[str]:
    """Returns the ids of the rows of some groups.

    Args:
        path (`str` or `os.PathLike`): A file of `write_groups`.
        groups (`Sequence[int]`): The groups.

    Returns:
        `list[str]`

    Raises:
        UserError: The file cannot be read, is another one, or lacks a group.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: cannot be read ({reason}): give the file that gallery groups --output wrote"
        ) from error
    if not rows or not {"group", "id"} <= rows[0].keys() or not all((row["group"] or "").isdecimal() for row in rows):
        raise UserError(f"{path}: has no groups of rows: give the file that gallery groups --output wrote")
    missing = set(groups) - {int(row["group"]) for row in rows}
    if missing:
        raise UserError(f"{path}: has no group {min(missing)}: give groups of its first column")
    return [row["id"] for row in rows if int(row["group"]) in groups]
