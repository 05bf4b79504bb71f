"""The numbers of an ablation's report: finished runs by what is compared, intervals and tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...evaluation.statistics import Interval
from .contrasts import Contrast, contrast, holm, interval_over_seeds
from .plan import FEATURES, AblationArguments, Run, variant_names
from .runs import folder_of, read_result


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


METRICS = ("mAP", "rank1")
LEVEL = 0.05


class View(NamedTuple):
    """What numbers are compared within: a budget, a training set, a test set and a feature."""

    budget: str
    train_set: str
    test_set: str
    feature: str


class Tested(NamedTuple):
    """A contrast with its p-value after Holm's correction over the contrasts of its view."""

    contrast: Contrast
    adjusted: float

    @property
    def word(self) -> str:
        """better, worse, or unclear."""
        return ("better" if self.contrast.difference > 0 else "worse") if self.adjusted < LEVEL else "unclear"

    @property
    def verdict(self) -> str:
        """What may be said of it, in words."""
        if np.isnan(self.adjusted):
            return "one seed: no test"
        if self.contrast.detectable == 0:
            return "equal in every query" if self.contrast.difference == 0 else "the same difference in every query"
        if self.adjusted < LEVEL:
            return self.word
        return f"no difference seen; one of {100 * self.contrast.detectable:.1f} would have been"


def views(args: AblationArguments) -> list[View]:
    """Every view of a plan."""
    return [
        View(budget, train_set, test_set, feature)
        for budget in args.budgets
        for train_set in args.train_sets
        for test_set in args.test_sets
        for feature in FEATURES
    ]


def variant_intervals(results: Results, view: View, rows: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """Row -> metric -> its mean over seeds and queries with the interval."""
    found = {}
    for row in rows:
        values = results.queries((view.budget, row, view.train_set), view.test_set, view.feature)
        found[row] = {metric: interval_over_seeds(values[metric], values["person_ids"]) for metric in METRICS}
    return found


def tested_contrasts(results: Results, view: View, args: AblationArguments) -> dict[str, dict[str, Tested]]:
    """Contrast -> metric -> the tested difference; Holm's correction is over the contrasts, for each metric alone."""
    found: dict[str, dict[str, Tested]] = {name: {} for name in args.contrasts}
    for metric in METRICS:
        differences = []
        for sides in args.contrasts.values():
            a, b = (_side(results, view, variant_names(side), metric) for side in sides)
            people = results.queries(_cell(view, variant_names(sides[0])[0]), view.test_set, view.feature)["person_ids"]
            differences.append(contrast(a, b, people))
        adjusted = holm([difference.p_value for difference in differences])
        for name, difference, p_value in zip(args.contrasts, differences, adjusted, strict=True):
            found[name][metric] = Tested(difference, p_value)
    return found


def intervals_as_json(rows: dict[str, dict[str, Interval]]) -> dict[str, Any]:
    """For the report's JSON."""
    return {row: {metric: interval.to_dict() for metric, interval in of.items()} for row, of in rows.items()}


def contrasts_as_json(contrasts: dict[str, dict[str, Tested]]) -> dict[str, Any]:
    """For the report's JSON: None for NaN."""
    return {
        name: {
            metric: {
                **tested.contrast.to_dict(),
                "holm": None if np.isnan(tested.adjusted) else tested.adjusted,
                "verdict": tested.verdict,
            }
            for metric, tested in of.items()
        }
        for name, of in contrasts.items()
    }


def _cell(view: View, row: str) -> tuple[str, str, str]:
    return view.budget, row, view.train_set


def _side(results: Results, view: View, rows: Sequence[str], metric: str) -> np.ndarray:
    """The mean over some rows, (seeds, queries)."""
    return np.mean([results.queries(_cell(view, row), view.test_set, view.feature)[metric] for row in rows], axis=0)
