"""The learning rate of each variant, chosen by the same budget on people of the train split."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UserError
from .plan import Plan, Run, sweep_names
from .runs import RunInputs, read_result, run_all, run_folder

# What a run on these people is tested on.
VAL = "val"


def choose_rates(plan: Plan, inputs: RunInputs, runs: Path) -> Plan:
    """Tries every factor on the learning rates of every variant, and takes the best of each variant.

    The tries have the first train set, the first seed and the steps of the plan. `rate_people` of the people are left
    out of the training and are its test. A factor is judged by the mAP of the features whose ReID losses the variant
    trains. All further runs train on all people. The test sets have no part in it. The variants of the sweep are not
    tried: its curve over lambda has one rate, the one chosen for `sweep_of`.

    Args:
        plan (`Plan`): The plan, with `rate_factors`.
        inputs (`RunInputs`): The inputs of the first train set.
        runs (`Path`): Folder of finished runs; finished tries are not repeated.

    Returns:
        `Plan`: The plan with the chosen rates in the settings, and all measured values in `rates`.

    Raises:
        UserError: If a variant has no learning rate, the train split has too few people, or a run fails.
    """
    tried = tries(plan)
    run_all([(run, inputs) for run in tried.values()], runs, processes=plan.args.processes)
    measured: dict[str, dict[float, float]] = {}
    for (variant, factor), run in tried.items():
        tested = read_result(run_folder(run, runs))["tests"][VAL]
        features = ("vision", "llm") if run.settings.get("reid_on", "both") == "both" else (run.settings["reid_on"],)
        values = [float(tested[feature]["mAP"]) for feature in features]
        measured.setdefault(variant, {})[factor] = float(np.mean(values))
    chosen = {variant: max(values, key=values.__getitem__) for variant, values in measured.items()}
    chosen |= {variant: chosen[str(plan.args.sweep_of)] for variant in sweep_names(plan.args).values()}
    settings = {variant: with_factor(plan.settings[variant], factor) for variant, factor in chosen.items()}
    return replace(plan, settings=settings, rates=measured)


def tries(plan: Plan) -> dict[tuple[str, float], Run]:
    """Returns the runs that choose learning rates, by variant and factor."""
    factors = dict.fromkeys(plan.args.rate_factors)
    swept = sweep_names(plan.args).values()
    variants = [variant for variant in plan.settings if variant not in swept]
    return {(variant, factor): _try(plan, variant, factor) for variant in variants for factor in factors}


def _try(plan: Plan, variant: str, factor: float) -> Run:
    """The run of a variant with a factor, without some people, and tested on them."""
    run = plan.first(variant)
    settings = with_factor(run.settings, factor)
    return replace(run, settings=settings, test_sets=(VAL,), val_people=plan.args.rate_people)


def with_factor(settings: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Returns settings whose learning rates are multiplied by a factor. Raises UserError without a rate."""
    if "learning_rate" not in settings:
        raise UserError("rate_factors: learning_rate is missing: give the rate that the factors multiply")
    changed = {**settings, "learning_rate": float(f"{settings['learning_rate'] * factor:.6g}")}
    if groups := settings.get("learning_rates"):
        changed["learning_rates"] = {name: float(f"{rate * factor:.6g}") for name, rate in groups.items()}
    return changed
