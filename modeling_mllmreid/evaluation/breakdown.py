"""Where a result comes from: per query camera, the worst queries, and training sets against test sets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..formats import MatrixEntry, read_json
from .metrics import RetrievalMetrics, averages
from .report import align


def subset(metrics: RetrievalMetrics, rows: np.ndarray) -> RetrievalMetrics:
    """The same metrics over these queries alone, rows (n,); NaN averages where none of them has a match."""
    return averages([metrics.match_ranks[row] for row in rows], metrics.average_precision[rows], ranks=metrics.cmc)


def by_camera(metrics: RetrievalMetrics, query_camera_ids: Sequence[int] | np.ndarray) -> dict[int, RetrievalMetrics]:
    """The metrics of each query camera's queries, by camera in ascending order. query_camera_ids: (Q,)."""
    cameras = np.asarray(query_camera_ids)
    return {int(camera): subset(metrics, np.flatnonzero(cameras == camera)) for camera in np.unique(cameras)}


def worst_queries(metrics: RetrievalMetrics, count: int) -> np.ndarray:
    """The rows (at most count,) of the queries of lowest average precision, the first of equal ones."""
    order = np.argsort(metrics.average_precision, kind="stable")  # NaN comes last
    return order[: min(count, metrics.num_valid)]


@dataclass(frozen=True)
class DataSetMatrix:
    """mAP and Rank-1 of models (rows, by what they were trained on) on test sets (columns), as fractions of 1.

    cells: (trained on, tested on) -> {"mAP", "rank1", "feature", "file"}.
    """

    trained_on: list[str]
    tested_on: list[str]
    cells: dict[tuple[str, str], dict[str, Any]]

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """trained on -> tested on -> the cell, for JSON."""
        return {
            row: {column: self.cells[row, column] for column in self.tested_on if (row, column) in self.cells}
            for row in self.trained_on
        }

    def format(self) -> str:
        """A text table, mAP / Rank-1 in percent; "-" where there is no report."""
        lines = [["trained on \\ tested on", *self.tested_on]]
        for row in self.trained_on:
            found = [self.cells.get((row, column)) for column in self.tested_on]
            lines.append([row, *(f"{_percent(c['mAP'])} / {_percent(c['rank1'])}" if c else "-" for c in found)])
        return f"{align(lines)}\nmAP / Rank-1 in percent."


def data_set_matrix(files: Sequence[str | os.PathLike[str]]) -> DataSetMatrix:
    """The matrix of several `metrics.json` files as the evaluate command writes them, each by its own test feature.

    Raises UserError for a file that is none, and for two files of one cell, naming both.
    """
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        trained_on, tested_on, cell = _cell(Path(file))
        if (trained_on, tested_on) in cells:
            other = cells[trained_on, tested_on]["file"]
            raise UserError(f"{file} and {other}: both trained on {trained_on} and tested on {tested_on}: give one")
        cells[trained_on, tested_on] = cell
    rows, columns = ([*dict.fromkeys(key[side] for key in cells)] for side in (0, 1))
    return DataSetMatrix(sorted(rows), sorted(columns), cells)


def _cell(file: Path) -> tuple[str, str, dict[str, Any]]:
    """(trained on, tested on, the cell) of one report."""
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
