"""The report: report.md for people, report.json for programs, pictures beside them; every number is of named runs."""

import datetime
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from ...data.captions import join_continuations, read_records
from ...evaluation.protocol import histogram_metrics, same_person
from ...evaluation.report import write_json
from ...evaluation.statistics import Interval
from ...training.run import hardware, versions
from ...utils.outputs import atomic_file
from ...utils.processes import this_process
from ..continuation_analysis import ContinuationAnalysis, analyse_continuations
from . import tables
from .plan import FEATURES, Cost, Plan, sweep_name
from .plots import draw_contrasts, draw_logged, draw_rows, draw_sweep
from .results import (
    Results,
    Tested,
    View,
    contrasts_as_json,
    intervals_as_json,
    tested_contrasts,
    variant_intervals,
    views,
)
from .teacher import Teacher

# What is drawn over the steps, where it was logged, with its unit.
LOGGED = {
    "lm_image": "nats per token",
    "lm_text": "nats per token",
    "id_vision": "nats",
    "id_llm": "nats",
    "triplet_vision": "distance",
    "attributes": "nats per attribute word",
}
MOST_TEXTS = 3000


def write_report(
    plan: Plan,
    costs: Mapping[str, Cost],
    results: Results,
    sets: Mapping[str, DatasetDict],
    teacher: Teacher,
    folder: Path,
) -> Path:
    """Writes report.md, report.json and the pictures into the folder; returns the Markdown file's path."""
    args, rows = plan.args, list(plan.settings)
    intervals = {view: variant_intervals(results, view, rows) for view in views(args)}
    contrasts = {view: tested_contrasts(results, view, args) for view in intervals} if args.contrasts else {}
    histograms = {name: histogram(sets[name]) for name in args.test_sets}
    analysis = analyse(plan, sets, teacher)
    pictures = draw_pictures(plan, results, intervals, contrasts, folder)
    sheet = copy_sheet(plan, results, folder)
    metadata = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(this_process().device, this_process().num_processes),
        "versions": versions(),
        "base": plan.base,
        "histogram": {name: row["mAP"] for name, row in histograms.items()},
        "continuations": {name: found.to_dict() for name, found in analysis.items()},
    }
    views_json = [
        {
            **view._asdict(),
            "rows": intervals_as_json(intervals[view]),
            "contrasts": contrasts_as_json(contrasts[view]) if contrasts else {},
        }
        for view in intervals
    ]
    write_json(folder / "report.json", {**metadata, "views": views_json})
    first = [view for view in intervals if view[1:3] == (args.train_sets[0], args.test_sets[0])]
    parts = [
        tables.head(plan, results, metadata, sets),
        tables.verdicts(plan, contrasts),
        *(tables.view_tables(plan, view, intervals, histograms) for view in first if view.feature == FEATURES[0]),
        *(tables.view_contrasts(view, contrasts) for view in first if contrasts),
        tables.matrices(plan, intervals, contrasts),
        tables.sweep(plan, intervals),
        tables.cost(plan, costs, results),
        tables.continuations(analysis),
        tables.agreement(plan, results),
        tables.diagnostics(plan, results),
        tables.pictures(pictures, sheet),
        tables.runs(results),
    ]
    path = folder / "report.md"
    with atomic_file(path) as aside:
        aside.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def histogram(dataset: DatasetDict) -> dict[str, Any]:
    """The colour histogram on a test set: what a learned feature has to pass first."""
    query, gallery = dataset["query"], dataset["gallery"]
    return histogram_metrics(query, gallery, same_person(query, gallery)).to_dict()


def analyse(plan: Plan, sets: Mapping[str, DatasetDict], teacher: Teacher) -> dict[str, ContinuationAnalysis]:
    """What the continuations of each single training set are worth, on at most so many texts."""
    found = {}
    for name in plan.args.train_sets:
        path = teacher.path(name, "train")
        if not path.exists():
            continue
        split = join_continuations(sets[name]["train"], "train", read_records(path))
        columns = (split[column][:] for column in ("caption", "continuation", "person_id"))
        texts = [
            (caption, continuation, person)
            for captions, continuations, person in zip(*columns, strict=True)
            for caption, continuation in zip(captions, continuations, strict=True)
        ]
        if len(texts) > MOST_TEXTS:
            chosen = np.random.default_rng(0).choice(len(texts), MOST_TEXTS, replace=False)
            texts = [texts[row] for row in sorted(chosen)]
        captions, continuations, people = zip(*texts, strict=True)
        found[name] = analyse_continuations(captions, continuations, people, text_features=teacher.embed(continuations))
    return found


def draw_pictures(
    plan: Plan,
    results: Results,
    intervals: Mapping[View, dict[str, dict[str, Interval]]],
    contrasts: Mapping[View, dict[str, dict[str, Tested]]],
    folder: Path,
) -> dict[str, str]:
    """File -> what it shows."""
    args, drawn = plan.args, {}
    train_set, test_set = args.train_sets[0], args.test_sets[0]
    for budget in args.budgets:
        where = f"trained on {train_set}, tested on {test_set}, equal {tables.LABELS[budget]}"
        by_feature = {feature: View(budget, train_set, test_set, feature) for feature in FEATURES}
        by_row = {
            feature: {row: found["mAP"] for row, found in intervals[view].items()}
            for feature, view in by_feature.items()
        }
        drawn[f"rows-{budget}.png"] = f"mAP of every row, {where}"
        draw_rows(folder / f"rows-{budget}.png", by_row, title=f"mAP: {where}")
        if contrasts:
            differences = {
                feature: {name: found["mAP"] for name, found in contrasts[view].items()}
                for feature, view in by_feature.items()
            }
            drawn[f"contrasts-{budget}.png"] = f"every contrast, {where}"
            draw_contrasts(folder / f"contrasts-{budget}.png", differences, title=f"Contrasts: {where}")
    if args.sweep_lambdas:
        names = {value: sweep_name(str(args.sweep_of), value) for value in args.sweep_lambdas}
        of_lambda = {
            feature: {
                value: intervals[View(args.budgets[0], train_set, test_set, feature)][row]["mAP"]
                for value, row in names.items()
            }
            for feature in FEATURES
        }
        drawn["lambda.png"] = f"mAP over lambda, row {args.sweep_of}"
        draw_sweep(folder / "lambda.png", of_lambda, title=f"{args.sweep_of}: {train_set} to {test_set}")
    panels: dict[str, dict[str, Any]] = {}
    swept = {sweep_name(str(args.sweep_of), value) for value in args.sweep_lambdas}
    for row in plan.settings:
        cell = (args.budgets[0], row, train_set)
        for name in LOGGED if row not in swept else ():
            curve = results.curve(cell, name)
            if curve[0]:
                panels.setdefault(name, {})[row] = curve
    if panels:
        drawn["losses.png"] = "the training losses of every row, means over seeds"
        draw_logged(folder / "losses.png", panels, LOGGED, title=f"Training losses on {train_set}")
    return drawn


def copy_sheet(plan: Plan, results: Results, folder: Path) -> str | None:
    """The texts of one row's first run beside their images, best and worst; None where no branches were compared."""
    args = plan.args
    row = args.agreement_of or args.flops_of
    if row is None:
        return None
    finished = results.cells[(args.budgets[0], row, args.train_sets[0])][0]
    name = next(iter(finished.result["agreement"]), None)
    if name is None:
        return None
    shutil.copyfile(finished.folder / "agreement-0.png", folder / "agreement.png")
    return f"agreement.png: row {row}, seed {finished.run.seed}, people of {name} that it never saw"
