"""The sections of the report in Markdown: each function turns numbers into text, empty if it has no numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import DatasetDict

from ...evaluation.statistics import Interval
from ..continuation_analysis import ContinuationAnalysis
from .contrasts import CLAIM
from .plan import FEATURES, Cost, Plan, sweep_names
from .results import Results, Tested, View

Intervals = Mapping[View, Mapping[str, Mapping[str, Interval]]]
Contrasts = Mapping[View, Mapping[str, Mapping[str, Tested]]]

LABELS = {"steps": "steps", "flops": "FLOPs"}
METRIC_LABELS = {"mAP": "mAP", "rank1": "Rank-1"}
CORPUS = {
    "num_texts": "texts",
    "num_different": "different texts",
    "words_mean": "words a text, mean",
    "words_min": "words, least",
    "words_max": "words, most",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "type_token_ratio": "type-token ratio, mean over texts",
    "self_bleu": "self-BLEU (1: all alike)",
    "same_for_two_people": "chance that two people's texts are equal",
    "unique_to_one_person": "share of texts that no other person has",
    "retrieval_mAP": "retrieval mAP by its words alone",
}
AGREEMENT = {
    "image_perplexity": "perplexity given the image",
    "text_perplexity": "given the caption",
    "other_image_perplexity": "given another person's image",
    "equal_tokens": "equal tokens",
    "exact_match": "exact match",
}


def head(plan: Plan, results: Results, metadata: Mapping[str, Any], sets: Mapping[str, DatasetDict]) -> str:
    """The runs, their data and machine, and how to read the report."""
    args = plan.args
    runs = {finished.run.key: finished for cell in results.cells.values() for finished in cell}
    seconds = sum(float(finished.result["seconds_in_all"]) for finished in runs.values())
    hardware = sorted({str(finished.result["hardware"]) for finished in runs.values()})
    lines = [
        f"- {len(plan.settings)} variants, {len(args.contrasts)} contrasts fixed before the runs, "
        f"{len(args.seeds)} seeds ({', '.join(map(str, args.seeds))}), {plan.max_steps:,} optimiser steps",
        *(f"- fewer seeds: {name}: {', '.join(map(str, seeds))}" for name, seeds in args.seeds_of.items()),
        f"- {len(runs)} different runs, {seconds / 3600:.2f} hours of computing on {'; '.join(hardware)}",
        f"- every run starts from {plan.base}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in metadata['versions'].items())}",
        f"- {metadata['date']}",
    ]
    for name, dataset in sets.items():
        splits = [
            f"{split} {len(images):,} images of {len(set(images['person_id'][:])):,} people"
            for split, images in dataset.items()
        ]
        lines.append(f"- {name}: {'; '.join(splits)}")
    return "\n".join(
        [
            "# Ablation",
            "",
            *lines,
            "",
            "mAP and Rank-1 in percent, means over seeds and queries. In brackets: 95 % interval, with seeds and "
            "people as crossed random factors. Contrasts are paired by seed and query. Interval and p are those of "
            "one t-test; p (Holm) is corrected over the contrasts of one feature, metric and budget, the intervals "
            "are not. Every run is tested at its last step; nothing is selected. A verdict is better or worse where "
            "the corrected p is below 0.05.",
        ]
    )


def verdicts(plan: Plan, contrasts: Contrasts) -> str:
    """The verdict of every contrast on every feature, and the power of the tests."""
    if not contrasts:
        return ""
    first = next(iter(contrasts))
    by_feature = {feature: contrasts[first._replace(feature=feature)] for feature in FEATURES}
    cells = [
        [name, *(f"{_signed(tests[name]['mAP'])} {tests[name]['mAP'].word}" for tests in by_feature.values())]
        for name in contrasts[first]
    ]
    ranges, weak = [], []
    for feature, tests in by_feature.items():
        detectable = {name: tested["mAP"].contrast.detectable for name, tested in tests.items()}
        if np.isnan(list(detectable.values())).any():
            continue
        ranges.append(f"{feature} {100 * min(detectable.values()):.1f} to {100 * max(detectable.values()):.1f}")
        undecided = [
            f"{name} ({_seeds_for_claim(tested['mAP'])})"
            for name, tested in tests.items()
            if detectable[name] > CLAIM and tested["mAP"].word == "unclear"
        ]
        weak += [f"- {feature}: {'; '.join(undecided)}"] if undecided else []
    power = ""
    if ranges:
        fewer = ", fewer where the list above says so," if plan.args.seeds_of else ""
        power = (
            f"\n\nPower: with {len(plan.args.seeds)} seeds{fewer} and these people the tests show a true difference "
            f"with probability 0.8 (uncorrected) from this many points of mAP, by contrast: {'; '.join(ranges)}."
        )
    if weak:
        power += (
            f"\n\n**The power is too low for a verdict** on an effect as large as the paper's {100 * CLAIM:.1f} mAP "
            "here. In brackets, the seeds that it would take if seeds and people differ as much as in these runs:\n\n"
            + "\n".join(weak)
        )
    title = f"## In short: mAP, {_named(first, feature=False)}"
    return f"{title}\n\n{table(['contrast', *FEATURES], cells)}{power}"


def _seeds_for_claim(tested: Tested) -> str:
    """The number of seeds that would show the paper's gain, in words."""
    seeds = tested.contrast.seeds_for_claim
    return "no number, but more test people" if np.isnan(seeds) else f"{seeds:.0f}"


def view_tables(plan: Plan, first: View, intervals: Intervals, histograms: Mapping[str, Mapping[str, Any]]) -> str:
    """Every variant with its intervals, one column for each metric and feature."""
    by_feature = [intervals[first._replace(feature=feature)] for feature in FEATURES]
    histogram = histograms[first.test_set]
    header = ["variant", *(f"{label} {feature}" for label in METRIC_LABELS.values() for feature in FEATURES)]
    cells = [
        [variant, *(_interval(feature[variant][metric]) for metric in METRIC_LABELS for feature in by_feature)]
        for variant in plan.variants(first.budget)
    ]
    cells.append(
        ["colour histogram", *(f"{100 * histogram[metric]:.1f}" for metric in METRIC_LABELS for _ in FEATURES)]
    )
    return f"## Variants: {_named(first, feature=False)}\n\n{table(header, cells)}"


def view_contrasts(view: View, contrasts: Contrasts) -> str:
    """Every contrast of a view with its test."""
    cells = []
    for name, by_metric in contrasts[view].items():
        for metric, label in METRIC_LABELS.items():
            tested = by_metric[metric]
            p_values = [_p(tested.contrast.p_value), _p(tested.adjusted)]
            seed_sd = "-" if np.isnan(tested.contrast.seed_sd) else f"{100 * tested.contrast.seed_sd:.1f}"
            cells.append([name, label, _signed(tested), *p_values, seed_sd, tested.verdict])
    header = ["contrast", "metric", "difference (points)", "p", "p (Holm)", "SD over seeds", "verdict"]
    return f"## Contrasts: {_named(view)}\n\n" + table(header, cells)


def matrices(plan: Plan, intervals: Intervals, contrasts: Contrasts) -> str:
    """Training sets x test sets, if there are several: the mAP of every variant and every contrast."""
    args = plan.args
    if len(args.train_sets) == 1 and len(args.test_sets) == 1:
        return ""
    sections = []
    for budget in args.budgets:
        for feature in FEATURES:
            sections.append(f"## Trained on x tested on: feature {feature}, equal {LABELS[budget]}")
            header = ["trained on", *args.test_sets]
            views = {
                train: [View(budget, train, test, feature) for test in args.test_sets] for train in args.train_sets
            }
            for variant in plan.variants(budget):
                cells = [
                    [train, *(_interval(intervals[view][variant]["mAP"]) for view in tests)]
                    for train, tests in views.items()
                ]
                sections.append(f"mAP, variant {variant}\n\n" + table(header, cells))
            for name in contrasts.get(next(iter(views.values()))[0], {}):
                cells = [
                    [train, *(_with_p(contrasts[view][name]["mAP"]) for view in tests)]
                    for train, tests in views.items()
                ]
                sections.append(f"Contrast {name}, points of mAP, p uncorrected\n\n" + table(header, cells))
    return "\n\n".join(sections)


def sweep(plan: Plan, intervals: Intervals) -> str:
    """The mAP over lambda as a table."""
    args = plan.args
    if not args.sweep_lambdas:
        return ""
    cells = []
    for value, variant in sweep_names(args).items():
        views = [View(args.budgets[0], args.train_sets[0], args.test_sets[0], feature) for feature in FEATURES]
        cells.append([f"{value:g}", *(_interval(intervals[view][variant]["mAP"]) for view in views)])
    title = f"## Lambda: variant {args.sweep_of}, mAP, equal {LABELS[args.budgets[0]]}"
    return f"{title}\n\n{table(['lambda', *FEATURES], cells)}"


def rates(plan: Plan) -> str:
    """The mAP on val of each factor on the learning rates; empty if none were tried."""
    if not plan.rates:
        return ""
    factors = sorted({factor for values in plan.rates.values() for factor in values})
    cells, at_the_end = [], []
    for variant, values in plan.rates.items():
        best = max(values, key=values.__getitem__)
        at_the_end += [variant] if best in (factors[0], factors[-1]) else []
        cells.append([variant, *(f"{100 * values[factor]:.1f}" for factor in factors), f"{best:g}"])
    note = (
        f"Each variant was trained with every factor on the learning rates, with seed {plan.args.seeds[0]} and without "
        f"{plan.args.rate_people} people of the train split, and tested on them: mAP of the features whose ReID losses "
        "it trains. The best factor counts for all its runs."
    )
    if plan.args.sweep_lambdas:
        note += f" The variants of the sweep have the factor of {plan.args.sweep_of}."
    if at_the_end:
        note += f" At an end of the grid, so that another rate may be better: {', '.join(at_the_end)}."
    header = ["variant", *(f"{factor:g}" for factor in factors), "taken"]
    return f"## Learning rates\n\n{note}\n\n{table(header, cells)}"


def cost(plan: Plan, costs: Mapping[str, Cost], results: Results) -> str:
    """Steps, FLOPs and seconds of every variant."""
    cells = []
    for variant, settings in plan.settings.items():
        line = [variant]
        for budget in plan.args.budgets:
            runs = results.cells.get((budget, variant, plan.args.train_sets[0]))
            if runs is None:
                line += ["-", "-"]
                continue
            seconds = np.mean([float(finished.result["seconds"]) for finished in runs])
            line += [f"{sum(runs[0].run.stages):,}", f"{seconds:.0f}"]
        if costs:
            flops = costs[variant].mean_per_step(float(settings.get("language_first", 0.0)))
            line += [f"{flops / 1e9:,.2f}", f"{flops / costs[variant].reference:.2f}"]
        cells.append(line)
    header = ["variant"]
    for budget in plan.args.budgets:
        header += [f"steps, equal {LABELS[budget]}", "seconds of training"]
    if costs:
        header += ["GFLOPs a step", f"of {plan.args.flops_of}'s"]
    note = "Seconds are those of simultaneous runs on one machine."
    if costs:
        share = f"{100 * plan.args.flops_tolerance:g} %"
        note += (
            f" Under equal FLOPs a variant keeps its steps if a step costs within {share} of {plan.args.flops_of}'s."
        )
    return f"## Cost\n\n{note}\n\n{table(header, cells)}"


def continuations(analysis: Mapping[str, ContinuationAnalysis]) -> str:
    """The statistics of the teacher's continuations, next to those of the captions that they continue."""
    sections = []
    for name, found in analysis.items():
        statistics = found.to_dict()
        both = (statistics["continuations"], statistics["captions"])
        cells = [[label, *(_number(side[key]) for side in both)] for key, label in CORPUS.items()]
        cells.append(["retrieval mAP by the language model's latent", _number(statistics["retrieval_mAP_llm"]), "-"])
        cells.append(["share of the caption's attribute words kept", _number(statistics["kept_attribute_share"]), "-"])
        sections.append(f"## Continuations of {name}\n\n" + table(["", "continuations", "captions"], cells))
    return "\n\n".join(sections)


def agreement(plan: Plan, results: Results) -> str:
    """The agreement of the image branch and the text branch, on people outside the training set."""
    args, cells = plan.args, []
    test_set = args.test_sets[0]
    for variant in plan.settings:
        cell = (args.budgets[0], variant, args.train_sets[0])
        if test_set in results.cells[cell][0].result["agreement"]:
            values = [results.mean(cell, "agreement", test_set, key) for key in AGREEMENT]
            cells.append([variant, *map(_number, values)])
    if not cells:
        return ""
    count = args.agreement_images
    return (
        f"## Image branch and text branch, at most {count} people of {test_set} outside the training set\n\n"
        "Of each variant's own kind of target; means over seeds.\n\n" + table(["variant", *AGREEMENT.values()], cells)
    )


def diagnostics(plan: Plan, results: Results) -> str:
    """The diagnostics of the trainer at their last measurement."""
    args = plan.args
    cells_by_variant = {variant: (args.budgets[0], variant, args.train_sets[0]) for variant in plan.settings}
    names = sorted(
        {
            name
            for cell in cells_by_variant.values()
            for name in results.logged(cell)
            if name.startswith("diag_") and name != "diag_step"
        }
    )
    if not names:
        return ""
    cells = []
    for variant, cell in cells_by_variant.items():
        curves = [results.curve(cell, name)[1] for name in names]
        cells.append([variant, *(_number(curve[-1]) if curve else "-" for curve in curves)])
    header = ["variant", *(name.removeprefix("diag_") for name in names)]
    return (
        "## Diagnostics at the last measurement, means over seeds\n\n"
        "grad_: norm of the gradient at the visual encoder's output from a loss part, as weighted in the total; "
        "within_ and between_: mean cosine of centred features; rank_: effective rank in the batch.\n\n"
        + table(header, cells)
    )


def pictures(drawn: Mapping[str, str], sheet: str | None) -> str:
    """The pictures of the report, in order."""
    images = [f"![{text}]({name})\n\n{text}" for name, text in drawn.items()]
    if sheet is not None:
        images.append(f"![texts next to their images](agreement.png)\n\n{sheet}")
    return "## Pictures\n\n" + "\n\n".join(images)


def runs(results: Results) -> str:
    """The folder of every run."""
    cells = [
        [variant, train_set, budget, str(finished.run.seed), f"runs/{finished.folder.name}"]
        for (budget, variant, train_set), cell in results.cells.items()
        for finished in cell
    ]
    return "## Runs\n\n" + table(["variant", "trained on", "equal", "seed", "folder"], cells)


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is aligned left, the others right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *cells))


def _named(view: View, *, feature: bool = True) -> str:
    """The view in words."""
    prefix = f"feature {view.feature}, " if feature else ""
    return f"{prefix}trained on {view.train_set}, tested on {view.test_set}, equal {LABELS[view.budget]}"


def _interval(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _signed(tested: Tested) -> str:
    contrast = tested.contrast
    return f"{100 * contrast.difference:+.1f} [{100 * contrast.low:+.1f}, {100 * contrast.high:+.1f}]"


def _with_p(tested: Tested) -> str:
    return f"{_signed(tested)}, p {_p(tested.contrast.p_value)}"


def _p(p_value: float) -> str:
    return "-" if np.isnan(p_value) else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _number(value: float | int | None) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
