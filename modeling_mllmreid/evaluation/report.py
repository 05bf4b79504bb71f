"""Metrics for people and for programs: a text table and JSON."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..outputs import written_aside
from .metrics import RetrievalMetrics
from .statistics import Interval


def format_table(
    rows: Sequence[tuple[str, RetrievalMetrics]], intervals: Mapping[str, Mapping[str, Interval]] | None = None
) -> str:
    """A text table with one line per named result: mAP, Rank-k and mINP in percent with one decimal, and the queries.

    The ranks are those any of the results has; "-" stands where a result has no value. intervals: by the result's name
    and the metric's key (mAP, rank1, ...), written behind the values of mAP and Rank-1.
    """
    ranks = sorted({rank for _, metrics in rows for rank in metrics.cmc})
    lines = [["", "mAP", *(f"Rank-{rank}" for rank in ranks), "mINP", "queries"]]
    for name, metrics in rows:
        known = (intervals or {}).get(name, {})
        cells = [_cell(metrics.mAP, known.get("mAP"))]
        for rank in ranks:
            cells.append(_cell(metrics.cmc.get(rank, math.nan), known.get("rank1") if rank == 1 else None))
        queries = f"{metrics.num_queries:,}"
        if metrics.num_valid < metrics.num_queries:
            queries = f"{metrics.num_valid:,} of {queries}"
        lines.append([name, *cells, _cell(metrics.mINP), queries])
    note = "In percent, one decimal. Queries: those with a match, of all."
    shares = [interval.confidence for row in (intervals or {}).values() for interval in row.values()]
    if shares:
        note += f" In brackets: {shares[0]:.0%} interval over people."
    return f"{align(lines)}\n{note}"


def align(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a text table: the first line is the head, with a rule below; the first column is flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _cell(share: float, interval: Interval | None = None) -> str:
    """A share in percent, with its interval behind it where it has one."""
    if math.isnan(share):
        return "-"
    return f"{100 * share:.1f}" + (f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else "")


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes an object as indented JSON, aside and renamed: the file is the old one or the new one, never half of one.

    Raises ValueError for NaN or infinity, which JSON has no word for.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
