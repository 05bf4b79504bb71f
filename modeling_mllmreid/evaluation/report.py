"""Results as text tables and JSON: metrics by query camera, the worst queries, training sets against test sets."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.report_formats import MatrixEntry
from .metrics import RetrievalMetrics, averages
from .statistics import Interval, PairedDifference


def format_table(
    results: Sequence[tuple[str, RetrievalMetrics]], intervals: Mapping[str, Mapping[str, Interval]] | None = None
) -> str:
    """Formats results as a text table: mAP, Rank-k and mINP in percent with one decimal, and the number of queries.

    Args:
        results (`Sequence[tuple[str, RetrievalMetrics]]`): a name and metrics per line; "-" replaces a missing value.
        intervals (`Mapping[str, Mapping[str, Interval]]`, *optional*): intervals by result and metric (mAP, rank1);
            they follow the values of mAP and Rank-1.

    Returns:
        `str`: the table.
    """
    ranks = sorted({rank for _, metrics in results for rank in metrics.cmc})
    lines = [["", "mAP", *(f"Rank-{rank}" for rank in ranks), "mINP", "queries"]]
    for name, metrics in results:
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


def difference_lines(differences: Mapping[str, PairedDifference]) -> str:
    """Formats the difference of each metric in percentage points, with its interval and p-value."""
    return "\n".join(
        f"  {name:7} {100 * d.difference:+6.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]  "
        + (f"p = {d.p_value:.4f}" if d.p_value >= 1e-4 else "p < 0.0001")
        for name, d in differences.items()
    )


def align(lines: Sequence[Sequence[str]]) -> str:
    """Aligns cells as a text table: the first line is the header, the first column is left-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _cell(share: float, interval: Interval | None = None) -> str:
    """Formats a share in percent, followed by its interval if there is one."""
    if math.isnan(share):
        return "-"
    return f"{100 * share:.1f}" + (f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else "")


def subset(metrics: RetrievalMetrics, queries: np.ndarray) -> RetrievalMetrics:
    """Returns the metrics of these queries, indices (n,); the averages are NaN if none of them has a match."""
    ranks = [metrics.match_ranks[query] for query in queries]
    return averages(ranks, metrics.average_precision[queries], ranks=metrics.cmc)


def by_camera(metrics: RetrievalMetrics, query_camera_ids: Sequence[int] | np.ndarray) -> dict[int, RetrievalMetrics]:
    """Returns the metrics of the queries of each camera, in ascending order. query_camera_ids is (Q,)."""
    cameras = np.asarray(query_camera_ids)
    return {int(camera): subset(metrics, np.flatnonzero(cameras == camera)) for camera in np.unique(cameras)}


def worst_queries(metrics: RetrievalMetrics, count: int) -> np.ndarray:
    """Returns the indices (at most count,) of the queries of lowest average precision; ties keep their order."""
    order = np.argsort(metrics.average_precision, kind="stable")  # NaN comes last
    return order[: min(count, metrics.num_valid)]


@dataclass(frozen=True)
class DataSetMatrix:
    """mAP and Rank-1 of models on test sets, as fractions of 1.

    Args:
        trained_on (`list[str]`): training sets of the models, one per line of the table.
        tested_on (`list[str]`): test sets, one per column.
        cells (`dict[tuple[str, str], dict[str, Any]]`): maps (trained on, tested on) to mAP, rank1, feature and file.
    """

    trained_on: list[str]
    tested_on: list[str]
    cells: dict[tuple[str, str], dict[str, Any]]

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Returns the cells by training set and test set, for JSON."""
        return {
            row: {column: self.cells[row, column] for column in self.tested_on if (row, column) in self.cells}
            for row in self.trained_on
        }

    def format(self) -> str:
        """Formats a text table of mAP / Rank-1 in percent; "-" if there is no report."""
        lines = [["trained on \\ tested on", *self.tested_on]]
        for row in self.trained_on:
            cells = [self.cells.get((row, column)) for column in self.tested_on]
            lines.append([row, *(f"{_percent(c['mAP'])} / {_percent(c['rank1'])}" if c else "-" for c in cells)])
        return f"{align(lines)}\nmAP / Rank-1 in percent."


def data_set_matrix(files: Sequence[str | os.PathLike[str]]) -> DataSetMatrix:
    """Reads the matrix from `metrics.json` files of the evaluate command, each by its own test feature.

    Raises UserError for a file of another kind, and for two files of the same cell.
    """
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        trained_on, tested_on, cell = _matrix_cell(Path(file))
        if (trained_on, tested_on) in cells:
            other = cells[trained_on, tested_on]["file"]
            raise UserError(f"{file} and {other}: both trained on {trained_on} and tested on {tested_on}: give one")
        cells[trained_on, tested_on] = cell
    rows, columns = ([*dict.fromkeys(key[side] for key in cells)] for side in (0, 1))
    return DataSetMatrix(sorted(rows), sorted(columns), cells)


def _matrix_cell(file: Path) -> tuple[str, str, dict[str, Any]]:
    """Returns (trained on, tested on, the cell) of a report."""
    try:
        report = read_json(file, MatrixEntry, remedy="give its metrics.json")
        metrics = report.metrics[report.test_feature]
        cell = {"mAP": metrics["mAP"], "rank1": metrics["rank1"], "feature": report.test_feature, "file": str(file)}
        return " + ".join(report.trained_on) or "nothing", " + ".join(report.tested_on), cell
    except UserError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise UserError(f"{file}: no metrics of the evaluate command: {reason}") from error
    except KeyError as error:
        raise UserError(f"{file}: no metrics of the evaluate command: no {error}: give its metrics.json") from error


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
