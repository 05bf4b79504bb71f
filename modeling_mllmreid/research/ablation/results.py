"""The numbers of an ablation's report: finished runs, intervals and tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...evaluation.statistics import Interval
from .contrasts import Contrast, contrast, holm, interval_over_seeds
from .plan import FEATURES, AblationArguments, Run, contrast_seeds, variant_names
from .runs import read_result, run_folder


@dataclass(frozen=True)
class Finished:
    """A finished run, with its folder and its result."""

    run: Run
    folder: Path
    result: Mapping[str, Any]


class Results:
    """All runs of an ablation, read once.

    A cell is (budget, variant, training set); `cells` holds its runs in the order of the seeds.
    """

    def __init__(self, runs: Sequence[Run], folder: Path):
        self.cells: dict[tuple[str, str, str], list[Finished]] = {}
        for run in runs:
            path = run_folder(run, folder)
            cell = self.cells.setdefault((run.budget, run.variant, run.train_set), [])
            cell.append(Finished(run, path, read_result(path)))

    def queries(
        self, cell: tuple[str, str, str], test_set: str, feature: str, seeds: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """The per-query values of a cell, with all its seeds or some.

        Returns "mAP" (S, Q), the average precision; "rank1" (S, Q), 1 where rank 1 is a match; "person_ids" (Q,). S is
        the number of seeds, Q of queries. A query without a match has NaN.
        """
        precision, hits, people = [], [], np.array([])
        for finished in self.cells[cell]:
            if seeds is not None and finished.run.seed not in seeds:
                continue
            with np.load(finished.folder / finished.result["tests"][test_set]["queries"]) as arrays:
                precision.append(arrays[f"{feature}_ap"])
                first_match = arrays[f"{feature}_first"]
                hits.append(np.where(np.isnan(first_match), np.nan, first_match == 1))
                people = arrays["person_ids"]
        return {"mAP": np.stack(precision), "rank1": np.stack(hits), "person_ids": people}

    def mean(self, cell: tuple[str, str, str], *path: str) -> float:
        """The mean over seeds of a value in the results, by its path of keys; NaN if a result has none."""
        values = []
        for finished in self.cells[cell]:
            value: Any = finished.result
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            values.append(np.nan if value is None else float(value))
        return float(np.mean(values))

    def curve(self, cell: tuple[str, str, str], name: str) -> tuple[list[int], list[float]]:
        """(steps, means over seeds) of a logged value; empty if it is not logged."""
        points: dict[int, list[float]] = {}
        for finished in self.cells[cell]:
            history = json.loads((finished.folder / "curves.json").read_text(encoding="utf-8"))
            for entry in history:
                if isinstance(entry.get(name), (int, float)):
                    points.setdefault(entry["step"], []).append(float(entry[name]))
        steps = sorted(points)
        return steps, [float(np.mean(points[step])) for step in steps]

    def logged(self, cell: tuple[str, str, str]) -> list[str]:
        """The sorted names of the values that the first run of a cell logs."""
        history = json.loads((self.cells[cell][0].folder / "curves.json").read_text(encoding="utf-8"))
        return sorted({name for entry in history for name, value in entry.items() if isinstance(value, (int, float))})


METRICS = ("mAP", "rank1")
LEVEL = 0.05


class View(NamedTuple):
    """The budget, training set, test set and feature within which variants are compared."""

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
        """The conclusion of the test, in words."""
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


def variant_intervals(results: Results, view: View, variants: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """The mean over seeds and queries with its interval, of the variants with runs: variant -> metric -> interval."""
    intervals = {}
    for variant in variants:
        if _cell(view, variant) not in results.cells:
            continue
        values = results.queries(_cell(view, variant), view.test_set, view.feature)
        intervals[variant] = {metric: interval_over_seeds(values[metric], values["person_ids"]) for metric in METRICS}
    return intervals


def tested_contrasts(results: Results, view: View, args: AblationArguments) -> dict[str, dict[str, Tested]]:
    """The tested differences: contrast -> metric -> test, of the contrasts whose variants all have runs in the view.

    Holm's correction covers the contrasts of one metric. A contrast takes the seeds that all its variants run with.
    """
    contrasts = {
        name: sides
        for name, sides in args.contrasts.items()
        if all(_cell(view, variant) in results.cells for side in sides for variant in variant_names(side))
    }
    tested: dict[str, dict[str, Tested]] = {name: {} for name in contrasts}
    for metric in METRICS:
        differences = []
        for sides in contrasts.values():
            seeds = contrast_seeds(args, sides)
            a, b = (_side(results, view, variant_names(side), metric, seeds) for side in sides)
            people = results.queries(_cell(view, variant_names(sides[0])[0]), view.test_set, view.feature)["person_ids"]
            differences.append(contrast(a, b, people))
        adjusted = holm([difference.p_value for difference in differences])
        for name, difference, p_value in zip(contrasts, differences, adjusted, strict=True):
            tested[name][metric] = Tested(difference, p_value)
    return tested


def intervals_as_json(intervals: dict[str, dict[str, Interval]]) -> dict[str, Any]:
    """The intervals of `variant_intervals` for JSON."""
    return {
        variant: {metric: interval.to_dict() for metric, interval in by_metric.items()}
        for variant, by_metric in intervals.items()
    }


def contrasts_as_json(contrasts: dict[str, dict[str, Tested]]) -> dict[str, Any]:
    """The tests of `tested_contrasts` for JSON, with None for NaN."""
    return {
        name: {
            metric: {
                **tested.contrast.to_dict(),
                "holm": None if np.isnan(tested.adjusted) else tested.adjusted,
                "verdict": tested.verdict,
            }
            for metric, tested in by_metric.items()
        }
        for name, by_metric in contrasts.items()
    }


def _cell(view: View, variant: str) -> tuple[str, str, str]:
    """The cell of a variant in a view."""
    return view.budget, variant, view.train_set


def _side(results: Results, view: View, variants: Sequence[str], metric: str, seeds: Sequence[int]) -> np.ndarray:
    """One side of a contrast: the mean over its variants, (seeds, queries)."""
    cells = [_cell(view, variant) for variant in variants]
    values = [results.queries(cell, view.test_set, view.feature, seeds)[metric] for cell in cells]
    return np.asarray(np.mean(values, axis=0))
