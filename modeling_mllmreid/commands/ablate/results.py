"""The finished runs of a plan, by what was compared: arrays over seeds and queries, means of what was logged."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .plan import Run
from .run import read_result
from .sweep import folder_of


@dataclass(frozen=True)
class Finished:
    """A run with its folder and what it reported."""

    run: Run
    folder: Path
    result: Mapping[str, Any]


class Results:
    """All runs, read once. cell: (budget, row, training set), its runs in the order of the seeds."""

    def __init__(self, runs: Sequence[Run], folder: Path):
        self.cells: dict[tuple[str, str, str], list[Finished]] = {}
        for run in runs:
            path = folder_of(run, folder)
            cell = self.cells.setdefault((run.budget, run.row, run.train_set), [])
            cell.append(Finished(run, path, read_result(path)))

    def queries(self, cell: tuple[str, str, str], test_set: str, feature: str) -> dict[str, np.ndarray]:
        """ "mAP" and "rank1": (seeds, queries), each query's average precision and whether its first place is right.

        "person_ids": (queries,). NaN where a query has no match.
        """
        precision, hits, people = [], [], np.array([])
        for finished in self.cells[cell]:
            with np.load(finished.folder / finished.result["tests"][test_set]["queries"]) as arrays:
                precision.append(arrays[f"{feature}_ap"])
                first = arrays[f"{feature}_first"]
                hits.append(np.where(np.isnan(first), np.nan, first == 1))
                people = arrays["person_ids"]
        return {"mAP": np.stack(precision), "rank1": np.stack(hits), "person_ids": people}

    def mean_of(self, cell: tuple[str, str, str], *path: str) -> float:
        """The mean over seeds of a number in the runs' results, NaN where one has none."""
        values = []
        for finished in self.cells[cell]:
            value: Any = finished.result
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            values.append(np.nan if value is None else float(value))
        return float(np.mean(values))

    def curve(self, cell: tuple[str, str, str], name: str) -> tuple[list[int], list[float]]:
        """(steps, the mean over seeds) of a logged number; empty where it was not logged."""
        points: dict[int, list[float]] = {}
        for finished in self.cells[cell]:
            history = json.loads((finished.folder / "curves.json").read_text(encoding="utf-8"))
            for entry in history:
                if isinstance(entry.get(name), (int, float)):
                    points.setdefault(entry["step"], []).append(float(entry[name]))
        steps = sorted(points)
        return steps, [float(np.mean(points[step])) for step in steps]

    def logged(self, cell: tuple[str, str, str]) -> list[str]:
        """The names of the numbers that a cell's first run logged, sorted."""
        history = json.loads((self.cells[cell][0].folder / "curves.json").read_text(encoding="utf-8"))
        return sorted({name for entry in history for name, value in entry.items() if isinstance(value, (int, float))})
