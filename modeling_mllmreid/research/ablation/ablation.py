"""The steps of an ablation: data sets and base model, costs, runs, report."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ...data.leakage import training_sources
from ...evaluation.plots import figure_class
from ...evaluation.protocol import check_query_gallery
from ...options.parser import build_options
from ...training.batch_arguments import BatchArguments
from ...utils.errors import UserError
from ...utils.outputs import check_output_folder, new_parents, only_writer, write_json
from .costs import step_costs
from .plan import NOT_COMPARED, SPEED, AblationArguments, Cost, Plan, Run
from .rates import choose_rates
from .report import write_report
from .results import Results
from .runs import RunInputs, run_all
from .settings import AblationSettings
from .teacher import (
    Teacher,
    base_identity,
    check_captions,
    first_images,
    load_set,
    make_teacher,
    prepare_base,
)


def run_ablation(settings: AblationSettings) -> Path:
    """Trains and tests every run of the plan and writes the report; a second call continues an interrupted one.

    Args:
        settings (`AblationSettings`): The plan and the fields of its variants. The results go to `settings.folder`.

    Returns:
        `Path`: The report in Markdown; the same numbers are next to it as JSON.

    Raises:
        UserError: For a folder with other work or with an ablation that still runs, a set without the splits that it
            needs, test people in a training set, and a failed run.
    """
    figure_class()  # Matplotlib may be missing: this fails before the work, not after it.
    check_folder(settings.folder)
    runs = settings.folder / "runs"
    # A start removes what killed runs left behind, and must not remove the work of another ablation.
    with new_parents(runs / "run"), only_writer(runs, work="ablation"):
        return _run_steps(settings)


def _run_steps(settings: AblationSettings) -> Path:
    args, folder = settings.args, settings.folder

    _print_step("1. The data sets and the base model")
    sets = {name: load_set(args, name) for name in dict.fromkeys((*args.train_sets, *args.test_sets))}
    check_sets(args, sets)
    base = prepare_base(args, settings.tiny, settings.shared, folder / "base")
    plan = make_plan(settings, base)
    (batches,) = build_options((BatchArguments,), settings.shared, "ablate")
    teacher = make_teacher(args, base, folder / "base", batches.max_target_tokens)
    texts, test_texts = write_texts(plan, sets, teacher)
    speed = {name: settings.shared[name] for name in SPEED if name in settings.shared}
    inputs = {name: RunInputs(args, base, texts.get(name), test_texts, speed) for name in args.train_sets}

    costs: dict[str, Cost] = {}
    if "flops" in args.budgets:
        _print_step("2. The cost of a step")
        costs = step_costs(plan, inputs[args.train_sets[0]])

    if args.rate_factors:
        _print_step("3. The learning rate of each variant, on people of the train split")
        plan = choose_rates(plan, inputs[args.train_sets[0]], folder / "runs")

    _print_step("4. The runs")
    runs = plan.runs(costs)
    write_json(folder / "plan.json", plan_as_json(plan, costs, runs))
    run_all([(run, inputs[run.train_set]) for run in runs], folder / "runs", processes=args.processes)

    _print_step("5. The report")
    return write_report(plan, costs, Results(runs, folder / "runs"), sets, teacher, folder)


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder with anything else than an ablation, and for one that cannot be written."""
    if any((folder / name).exists() for name in ("base", "runs", "plan.json")):
        return
    check_output_folder(folder)


def check_sets(args: AblationArguments, sets: Mapping[str, DatasetDict]) -> None:
    """Raises UserError for a set without the splits that it needs, and for test people in a training set."""
    for name in args.train_sets:
        if "train" not in sets[name]:
            raise UserError(f"train_sets: {name}: has {', '.join(sets[name])}: leave it out, or give its train split")
        training_sources(name, sets[name], targets=args.test_sets, allow_overlap=False)
    for name in args.test_sets:
        if "query" not in sets[name] or "gallery" not in sets[name]:
            raise UserError(f"test_sets: {name}: has {', '.join(sets[name])}: give a set with query and gallery")
        check_query_gallery(sets[name]["query"], sets[name]["gallery"])


def make_plan(settings: AblationSettings, base: str) -> Plan:
    """The plan with all settings of each variant, except for those that do not change its results."""
    variants = {
        name: {key: value for key, value in {**settings.shared, **own}.items() if key not in NOT_COMPARED}
        for name, own in settings.variants.items()
    }
    return Plan(settings.args, variants, settings.shared["max_steps"], base_identity(settings.args, base))


def write_texts(
    plan: Plan, sets: Mapping[str, DatasetDict], teacher: Teacher
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Writes the continuations that the plan needs.

    Those of the test sets only serve to compare both branches; no run trains on them.

    Args:
        plan (`Plan`): The plan.
        sets (`Mapping[str, DatasetDict]`): All data sets by name.
        teacher (`Teacher`): The frozen language model.

    Returns:
        `tuple[dict[str, Path], dict[str, Path]]`: The files of the training sets, and those of the test sets, by name.

    Raises:
        UserError: For a training set without captions, where a variant needs them.
    """
    train: dict[str, Path] = {}
    language = [
        settings
        for settings in plan.settings.values()
        if settings["loss_lambda"] < 1 or settings.get("attribute_weight") or settings.get("language_first")
    ]
    continued = any(settings.get("target", "continuation") == "continuation" for settings in language)
    for name in plan.args.train_sets if language else ():
        check_captions(name, sets[name]["train"])
        if continued:
            train[name] = teacher.continue_captions(name, "train", sets[name]["train"])
    test: dict[str, Path] = {}
    if plan.args.agreement_images and language:
        for name in plan.args.test_sets:
            query = first_images(sets[name]["query"], plan.args.agreement_images)
            if len(query) > 1:
                test[name] = teacher.continue_captions(name, "query", query)
    return train, test


def plan_as_json(plan: Plan, costs: Mapping[str, Cost], runs: list[Run]) -> dict[str, Any]:
    """The decisions before the first run, for `plan.json`."""
    return {
        "plan": asdict(plan.args),
        "max_steps": plan.max_steps,
        "base": plan.base,
        "rates": plan.rates,
        "rows": {name: dict(settings) for name, settings in plan.settings.items()},
        "flops_per_step": {variant: asdict(cost) for variant, cost in costs.items()},
        "runs": [{"folder": run.folder, "row": run.variant, "budget": run.budget, "seed": run.seed} for run in runs],
    }


def _print_step(title: str) -> None:
    print(f"\n{title}", flush=True)
