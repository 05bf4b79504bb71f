"""The ablation's steps, in order: the plan, what runs begin with, what a step costs, the runs, the report."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..data.leakage import training_sources
from ..evaluation.plots import figure_class
from ..evaluation.protocol import check_query_gallery
from ..evaluation.report import write_json
from ..model import MllmReIDConfig
from ..options.parser import build_options, read_mapping, read_options
from ..research.ablation.plan import (
    NOT_COMPARED,
    SPEED,
    AblationArguments,
    ControlArguments,
    Cost,
    Plan,
    Run,
    check_plan,
)
from ..research.ablation.report import write_report
from ..research.ablation.results import Results
from ..research.ablation.runs import GROUPS, Place, run_all, step_costs
from ..research.ablation.teacher import (
    Teacher,
    base_identity,
    check_captions,
    load_set,
    one_image_each,
    prepare_base,
    teacher_folder,
)
from ..research.tiny_llava import TinyArguments
from ..training.arguments import BatchArguments
from ..utils.errors import UserError
from ..utils.outputs import check_output_folder

# The default of the model's configuration.
LOSS_LAMBDA: float = inspect.signature(MllmReIDConfig.__init__).parameters["loss_lambda"].default


def main(argv: list[str]) -> None:
    """Runs the plan and writes the report; the same command again goes on where a killed one was."""
    args, tiny, shared, rows = read_configuration(argv)
    figure_class()  # before the work, not after it
    folder = Path(shared.get("output_dir", "runs/ablation"))
    check_folder(folder)

    _say("1. The sets, and what every run begins with")
    sets = {name: load_set(args, name) for name in dict.fromkeys((*args.train_sets, *args.test_sets))}
    _check_sets(args, sets)
    base = prepare_base(args, tiny, shared, folder / "base")
    settings = {
        name: {key: value for key, value in {**shared, **row}.items() if key not in NOT_COMPARED}
        for name, row in rows.items()
    }
    plan = Plan(args, settings, shared["max_steps"], base_identity(args, base))
    (batches,) = build_options((BatchArguments,), shared, "ablate")
    teacher = Teacher(args, base, teacher_folder(folder / "base", plan.base), batches.max_target_tokens)
    texts, test_texts = write_texts(plan, sets, teacher)
    speed = {name: shared[name] for name in SPEED if name in shared}
    places = {name: Place(args, base, texts.get(name), test_texts, speed) for name in args.train_sets}

    costs: dict[str, Cost] = {}
    if "flops" in args.budgets:
        _say("2. What a step costs")
        costs = step_costs(plan, places[args.train_sets[0]])

    _say("3. The runs")
    runs = plan.runs(costs)
    write_json(folder / "plan.json", _as_json(plan, costs, runs))
    run_all([(run, places[run.train_set]) for run in runs], folder / "runs", processes=args.processes)

    _say("4. The report")
    path = write_report(plan, costs, Results(runs, folder / "runs"), sets, teacher, folder)
    print(f"report: {path}\nJSON:   {path.with_suffix('.json')}\nruns:   {folder / 'runs'}")


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds anything else than an ablation, and for one that cannot be written."""
    if any((folder / name).exists() for name in ("base", "runs", "plan.json")):
        return
    check_output_folder(folder)


def read_configuration(
    argv: list[str],
) -> tuple[AblationArguments, TinyArguments, dict[str, Any], dict[str, dict[str, Any]]]:
    """The plan, the tiny LLaVA's sizes, the fields that all rows share, and those of each row.

    Raises UserError naming what does not hold together, before anything is made.
    """
    shared_groups = tuple(group for group in GROUPS if group is not ControlArguments)
    given = read_options((AblationArguments, TinyArguments, *shared_groups), argv, "ablate")
    args, tiny = build_options((AblationArguments, TinyArguments), given, "ablate")
    rows = {name: read_mapping(GROUPS, row, f"rows: {name!r}") for name, row in check_plan(args).items()}
    own = {field.name for group in GROUPS for field in fields(group)}
    # Lambda is said in every row, so that one that names the default is the same run as one that does not.
    shared = {"loss_lambda": LOSS_LAMBDA, **{name: value for name, value in given.items() if name in own}}
    if shared.get("max_steps", 0) < 1:
        raise UserError("max_steps is not given: say how many steps each row is trained")
    for name, row in rows.items():
        build_options(GROUPS, {**shared, **row}, f"row {name!r}")
    return args, tiny, shared, rows


def write_texts(
    plan: Plan, sets: Mapping[str, DatasetDict], teacher: Teacher
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The continuations of the training parts, where a row trains on them, and of captions of the test parts.

    Those of the test parts are what both branches are compared on, and are never trained on. Raises UserError for a
    training part without captions where a row needs them.
    """
    train: dict[str, Path] = {}
    told = plan.settings.values()
    language = [
        row for row in told if row["loss_lambda"] < 1 or row.get("attribute_weight") or row.get("language_first")
    ]
    continued = any(row.get("target", "continuation") == "continuation" for row in language)
    for name in plan.args.train_sets if language else ():
        check_captions(name, sets[name]["train"])
        if continued:
            train[name] = teacher.continue_captions(name, "train", sets[name]["train"])
    test: dict[str, Path] = {}
    if plan.args.agreement_images and language:
        for name in plan.args.test_sets:
            shown = one_image_each(sets[name]["query"], plan.args.agreement_images)
            if len(shown) > 1:
                test[name] = teacher.continue_captions(name, "query", shown)
    return train, test


def _check_sets(args: AblationArguments, sets: Mapping[str, DatasetDict]) -> None:
    """Raises UserError where a set lacks the part that it is named for, and where test people would be trained on."""
    for name in args.train_sets:
        if "train" not in sets[name]:
            raise UserError(f"train_sets: {name}: has {', '.join(sets[name])}: leave it out, or give its training part")
        training_sources(name, sets[name], targets=args.test_sets, allow_overlap=False)
    for name in args.test_sets:
        if "query" not in sets[name] or "gallery" not in sets[name]:
            raise UserError(f"test_sets: {name}: has {', '.join(sets[name])}: give a set with query and gallery")
        check_query_gallery(sets[name]["query"], sets[name]["gallery"])


def _as_json(plan: Plan, costs: Mapping[str, Cost], runs: list[Run]) -> dict[str, Any]:
    """What was decided before the first run."""
    return {
        "plan": asdict(plan.args),
        "max_steps": plan.max_steps,
        "base": plan.base,
        "rows": {name: dict(row) for name, row in plan.settings.items()},
        "flops_per_step": {row: asdict(cost) for row, cost in costs.items()},
        "runs": [{"folder": run.folder, "row": run.row, "budget": run.budget, "seed": run.seed} for run in runs],
    }


def _say(step: str) -> None:
    print(f"\n{step}", flush=True)
