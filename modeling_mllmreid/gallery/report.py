"""Rows, groups, decisions and results of a gallery as lines of text and as a ranked sheet."""

import os
from datetime import datetime
from typing import Any

import numpy as np

from ..retrieval.embeddings import printable
from ..retrieval.exact import Ranking
from ..retrieval.sheet import decimals, ranked_sheet
from ..utils.errors import UserError
from .decisions import Decision
from .gallery import Gallery
from .groups import SuggestedMerge
from .pictures import openers
from .results import Erased, Found, Hit, Verification, counted, probability_note
from .rows import Rows

SHOWN = 20


def hit_line(hit: Hit, place: int | None = None, places: int = 4, verified: bool = False) -> str:
    """Returns a row as a line: its place, distance and, of a verified search, probability if there is a place."""
    known = {
        name: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for name, value in hit.crop.known().items()
    }
    words = [f"{name} {value}" for name, value in known.items()]
    name = printable(hit.file_name) if hit.file_name else hit.id[:16]
    distance = "" if place is None else f"{place:>4}  {hit.distance:.{places}f}  "
    if verified:
        distance += f"{'-' if hit.probability is None else format(hit.probability, '.1%'):>6}  "
    return f"{distance}{name}{'  ' if words else ''}{', '.join(words)}{'  beyond the threshold' if hit.beyond else ''}"


def group_line(members: Rows, group: int) -> str:
    """Returns a group as a line: crops, cameras, times, and the name if a human gave one."""
    cameras = ", ".join(map(str, np.unique(members.columns["camera_id"])))
    times = members.columns["time"][~np.isnat(members.columns["time"])].astype("datetime64[s]")
    span = f", {times.min()}Z to {times.max()}Z" if len(times) else ""
    names = sorted({name for name in members.columns["person"] if name})
    person = f", person {', '.join(names)}" if names else ""
    return f"group {group}: {counted(len(members), 'crop')}, cameras {cameras}{span}{person}"


def merge_line(merge: SuggestedMerge) -> str:
    """Returns two groups that may be one person as a line."""
    return f"groups {merge.first} and {merge.second}, {merge.confidence:.0%}"


def decision_line(made: Decision) -> str:
    """Returns a decision as a line."""
    verb = {"confirm": "one person", "rename": "renamed", "split": "another person"}[made.action]
    time = made.time.isoformat(timespec="seconds")
    return (
        f"{made.id}  {time}  {printable(made.who)}  {counted(len(made.ids), 'row')}, {verb}: {printable(made.person)}"
    )


def print_found(found: Found) -> None:
    """Prints the hits, and whether any of them is within the threshold."""
    digits = decimals([hit.distance for hit in found.hits])
    for place, hit in enumerate(found.hits, start=1):
        print(hit_line(hit, place, digits, found.verification is not None))
    print(f"searched {counted(found.searched, 'row')}")
    if found.verification is not None:
        print(*verification_lines(found.verification), sep="\n")
    if not found.searched:
        print("no other row is there, or none meets the conditions; a row without a time meets none on time")
    elif found.nobody:
        print(f"nobody: no image is within the threshold {found.threshold:.{decimals([found.threshold or 0])}f}")


def verification_lines(made: Verification) -> list[str]:
    """Returns what was verified, what the probability is about, and which rows could not be verified, as lines."""
    lines = [f"{counted(made.rows, 'row')} verified"]
    if made.rows:
        lines[0] += f", most probable first; the probability {probability_note(made.top, made.gallery)}"
    if made.unopened:
        names, count = ", ".join(name[:16] for name in made.unopened[:SHOWN]), counted(len(made.unopened), "row")
        lines.append(f"not verified: {count} whose picture is missing, broken or another one: {names}")
    return lines


def image_files(hits: list[Hit]) -> list[str]:
    """Returns the image files of rows that are there: adding their folder again adds the rows again."""
    return [hit.file_name for hit in hits if hit.file_name and os.path.isfile(hit.file_name)]


def print_to_erase(hits: list[Hit], beyond: list[Hit], ranked: bool) -> None:
    """Prints the rows that would be erased, and those that show perhaps the same person and would stay.

    Args:
        hits (`list[Hit]`): The rows to erase.
        beyond (`list[Hit]`): The nearest rows beyond the threshold.
        ranked (`bool`): Whether the rows have a distance to a photo.
    """
    digits = decimals([hit.distance for hit in (*hits, *beyond)])
    for place, hit in enumerate(hits[:SHOWN], start=1):
        print(hit_line(hit, place if ranked else None, digits))
    if len(hits) > SHOWN:
        print(f"and {len(hits) - SHOWN:,} more")
    if beyond:
        print("not among them, look at these too:")
    for place, hit in enumerate(beyond, start=len(hits) + 1):
        print(hit_line(hit, place, digits))


def print_erased(erased: Erased) -> None:
    """Prints what was erased, and what is left of it."""
    traces = erased.traces
    files = f", {counted(len(erased.files), 'image file')} deleted" if erased.files else ""
    print(f"{counted(erased.rows, 'row')} erased{files}")
    print(
        f"traces: {traces.count} (searched {traces.searched_bytes / 2**20:,.1f} MiB of files for {traces.patterns:,} "
        "byte strings: features, ids, names, pictures and decisions)"
    )
    if traces.count:
        raise UserError(f"traces of erased rows are left in {', '.join(traces.files)}: run gallery expire again")


def draw_found(path: str, gallery: Gallery, found: Found, photo: str | None, text: str) -> None:
    """Draws the hits as a ranked sheet."""
    shown = found.hits[:SHOWN]
    distances = np.array([[hit.distance for hit in shown]], np.float32)
    ranking = Ranking(np.arange(len(shown))[None], distances)
    titles = [os.path.basename(hit.file_name) if hit.file_name else hit.id[:12] for hit in shown]
    sources: list[Any] = openers(gallery, shown)
    ranked_sheet(
        path,
        [photo],
        sources,
        ranking,
        gallery_camera_ids=[hit.crop.camera_id for hit in shown] if photo is None else None,
        query_titles=[os.path.basename(photo) if photo else text],
        gallery_titles=titles,
        title=f"Nearest of {counted(found.searched, 'row')}",
        columns=len(shown),
        threshold=found.threshold,
    )
    print(f"ranked sheet: {printable(path)}")
