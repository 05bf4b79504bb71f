"""The report of an ablation: report.md to read, report.json for programs, and pictures."""

import datetime
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from ...data.captions import join_continuations, read_records
from ...evaluation.protocol import histogram_metrics, same_person
from ...evaluation.statistics import Interval
from ...training.record import hardware, versions
from ...utils.outputs import atomic_file, write_json
from ...utils.processes import this_process
from ..continuation_analysis import ContinuationAnalysis, analyse_continuations
from . import tables
from .plan import FEATURES, Cost, Plan, sweep_names
from .plots import draw_contrasts, draw_logged, draw_sweep, draw_variants
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

# The logged values that are drawn over the steps, with their units.
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
    """Writes report.md, report.json and the pictures.

    Args:
        plan (`Plan`): The plan.
        costs (`Mapping[str, Cost]`): FLOPs by variant; empty without the budget "flops".
        results (`Results`): The finished runs.
        sets (`Mapping[str, DatasetDict]`): The data sets by name.
        teacher (`Teacher`): The frozen language model; it embeds the continuations.
        folder (`Path`): Folder for the files.

    Returns:
        `Path`: The path of report.md.
    """
    args = plan.args
    intervals = {view: variant_intervals(results, view, list(plan.settings)) for view in views(args)}
    contrasts = {view: tested_contrasts(results, view, args) for view in intervals} if args.contrasts else {}
    histograms = {name: histogram(sets[name]) for name in args.test_sets}
    analysis = analyse(plan, sets, teacher)
    pictures = draw_pictures(plan, results, intervals, contrasts, folder)
    sheet = copy_sheet(plan, results, folder)
    metadata = report_metadata(plan, histograms, analysis)
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
    sections = [
        tables.head(plan, results, metadata, sets),
        tables.verdicts(plan, contrasts),
        *(tables.view_tables(plan, view, intervals, histograms) for view in first if view.feature == FEATURES[0]),
        *(tables.view_contrasts(view, contrasts) for view in first if contrasts),
        tables.matrices(plan, intervals, contrasts),
        tables.sweep(plan, intervals),
        tables.rates(plan),
        tables.cost(plan, costs, results),
        tables.continuations(analysis),
        tables.agreement(plan, results),
        tables.diagnostics(plan, results),
        tables.pictures(pictures, sheet),
        tables.runs(results),
    ]
    path = folder / "report.md"
    with atomic_file(path) as partial:
        partial.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return path


def report_metadata(
    plan: Plan, histograms: Mapping[str, Mapping[str, Any]], analysis: Mapping[str, ContinuationAnalysis]
) -> dict[str, Any]:
    """Date, machine, versions and base model of the report, with the histogram baseline and the text statistics."""
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(this_process().device, this_process().num_processes),
        "versions": versions(),
        "base": plan.base,
        "rates": plan.rates,
        "histogram": {name: metrics["mAP"] for name, metrics in histograms.items()},
        "continuations": {name: statistics.to_dict() for name, statistics in analysis.items()},
    }


def histogram(dataset: DatasetDict) -> dict[str, Any]:
    """The metrics of the colour histogram on a test set, a baseline for every learned feature."""
    query, gallery = dataset["query"], dataset["gallery"]
    return histogram_metrics(query, gallery, same_person(query, gallery)).to_dict()


def analyse(plan: Plan, sets: Mapping[str, DatasetDict], teacher: Teacher) -> dict[str, ContinuationAnalysis]:
    """The statistics of each training set's continuations, on at most `MOST_TEXTS` texts."""
    analysis = {}
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
            texts = [texts[index] for index in sorted(chosen)]
        captions, continuations, people = zip(*texts, strict=True)
        features = teacher.embed(continuations)
        analysis[name] = analyse_continuations(captions, continuations, people, text_features=features)
    return analysis


def draw_pictures(
    plan: Plan,
    results: Results,
    intervals: Mapping[View, dict[str, dict[str, Interval]]],
    contrasts: Mapping[View, dict[str, dict[str, Tested]]],
    folder: Path,
) -> dict[str, str]:
    """Draws all pictures; returns a caption for each file name, in the order of the report."""
    drawn = draw_metrics(plan, intervals, contrasts, folder)
    if plan.args.sweep_lambdas:
        drawn |= draw_lambda(plan, intervals, folder)
    return drawn | draw_losses(plan, results, folder)


def draw_metrics(
    plan: Plan,
    intervals: Mapping[View, dict[str, dict[str, Interval]]],
    contrasts: Mapping[View, dict[str, dict[str, Tested]]],
    folder: Path,
) -> dict[str, str]:
    """Draws the mAP of every variant and the contrasts, for each budget."""
    drawn: dict[str, str] = {}
    train_set, test_set = plan.args.train_sets[0], plan.args.test_sets[0]
    for budget in plan.args.budgets:
        where = f"trained on {train_set}, tested on {test_set}, equal {tables.LABELS[budget]}"
        by_feature = {feature: View(budget, train_set, test_set, feature) for feature in FEATURES}
        by_variant = {
            feature: {variant: by_metric["mAP"] for variant, by_metric in intervals[view].items()}
            for feature, view in by_feature.items()
        }
        drawn[f"rows-{budget}.png"] = f"mAP of every variant, {where}"
        draw_variants(folder / f"rows-{budget}.png", by_variant, title=f"mAP: {where}")
        if contrasts:
            differences = {
                feature: {name: by_metric["mAP"] for name, by_metric in contrasts[view].items()}
                for feature, view in by_feature.items()
            }
            drawn[f"contrasts-{budget}.png"] = f"every contrast, {where}"
            draw_contrasts(folder / f"contrasts-{budget}.png", differences, title=f"Contrasts: {where}")
    return drawn


def draw_lambda(plan: Plan, intervals: Mapping[View, dict[str, dict[str, Interval]]], folder: Path) -> dict[str, str]:
    """Draws the mAP over lambda."""
    args = plan.args
    train_set, test_set = args.train_sets[0], args.test_sets[0]
    by_lambda = {
        feature: {
            value: intervals[View(args.budgets[0], train_set, test_set, feature)][variant]["mAP"]
            for value, variant in sweep_names(args).items()
        }
        for feature in FEATURES
    }
    draw_sweep(folder / "lambda.png", by_lambda, title=f"{args.sweep_of}: {train_set} to {test_set}")
    return {"lambda.png": f"mAP over lambda, variant {args.sweep_of}"}


def draw_losses(plan: Plan, results: Results, folder: Path) -> dict[str, str]:
    """Draws the logged losses of every variant that is not of the sweep."""
    args, train_set = plan.args, plan.args.train_sets[0]
    panels: dict[str, dict[str, Any]] = {}
    swept = sweep_names(args).values()
    for variant in plan.settings:
        cell = (args.budgets[0], variant, train_set)
        for name in LOGGED if variant not in swept else ():
            curve = results.curve(cell, name)
            if curve[0]:
                panels.setdefault(name, {})[variant] = curve
    if not panels:
        return {}
    draw_logged(folder / "losses.png", panels, LOGGED, title=f"Training losses on {train_set}")
    return {"losses.png": "the training losses of every variant, means over seeds"}


def copy_sheet(plan: Plan, results: Results, folder: Path) -> str | None:
    """Copies the best and worst texts of one run next to their images; returns a caption, None without a comparison."""
    args = plan.args
    variant = args.agreement_of or args.flops_of
    if variant is None:
        return None
    finished = results.cells[(args.budgets[0], variant, args.train_sets[0])][0]
    name = next(iter(finished.result["agreement"]), None)
    if name is None:
        return None
    shutil.copyfile(finished.folder / "agreement-0.png", folder / "agreement.png")
    return f"agreement.png: variant {variant}, seed {finished.run.seed}, people of {name} outside its training set"
