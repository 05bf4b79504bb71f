"""Metrics for people and for programs: a text table and JSON."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from ..retrieval.index import written_aside
from .metrics import RetrievalMetrics


def format_table(rows: Sequence[tuple[str, RetrievalMetrics]]) -> str:
    """A text table with one line per named result: mAP, Rank-k and mINP in percent with one decimal, and the queries.

    The ranks are those any of the results has; "-" stands where a result has no value.
    """
    ranks = sorted({rank for _, metrics in rows for rank in metrics.cmc})
    lines = [["", "mAP", *(f"Rank-{rank}" for rank in ranks), "mINP", "queries"]]
    for name, metrics in rows:
        shares = [metrics.mAP, *(metrics.cmc.get(rank, math.nan) for rank in ranks), metrics.mINP]
        queries = f"{metrics.num_queries:,}"
        if metrics.num_valid < metrics.num_queries:
            queries = f"{metrics.num_valid:,} of {queries}"
        lines.append([name, *("-" if math.isnan(share) else f"{100 * share:.1f}" for share in shares), queries])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join([*text, "In percent, one decimal. Queries: those with a match, of all."])


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes an object as indented JSON, aside and renamed: the file is the old one or the new one, never half of one.

    Raises ValueError for NaN or infinity, which JSON has no word for.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
