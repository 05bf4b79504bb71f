"""The cost of a plan before its first run, from the configuration of the base model alone."""

from functools import partial
from typing import Any, NamedTuple

from ...options.arguments import ModelArguments
from ...options.parser import build_options
from ...training.loading import load_config
from ...training.memory import estimate_memory
from ...training.step_flops import step_flops
from ...utils.errors import UserError
from .ablation import make_plan
from .costs import NO_COST, by_cost, with_reference
from .plan import SPEED, TINY, AblationArguments, Cost, Run
from .rates import tries
from .runs import GROUPS
from .settings import AblationSettings
from .tables import table

# People of the ID classifier; the true number is known with the data.
IDENTITIES = 1000
# Fields of the texts, whose lengths are known with the data.
TEXTS = ("instruction", "target")


def describe_cost(settings: AblationSettings) -> str:
    """Counts the runs of a plan, and estimates the FLOPs and memory of a step of each variant.

    Args:
        settings (`AblationSettings`): The plan and the fields of its variants. No data set and no weights are read.

    Returns:
        `str`: A table of the variants, and the hours of training of the whole plan.

    Raises:
        UserError: For the tiny base model, which has no configuration yet, and one that cannot be loaded.
    """
    args = settings.args
    if args.base_model == TINY:
        raise UserError("dry_run: the tiny base model is built by the run itself: give base_model")
    plan = make_plan(settings, args.base_model)
    speed = {name: settings.shared[name] for name in SPEED if name in settings.shared}
    steps = by_cost(plan, partial(_step, args, speed), without=(*NO_COST, *TEXTS))
    costs = {variant: step.cost for variant, step in steps.items()}
    if "flops" in args.budgets:
        costs = with_reference(plan, costs)
    runs = {run.key: run for run in plan.runs(costs)}
    tried = {run.key: run for run in tries(plan).values()}
    flops = sum(_flops(run, costs[run.variant]) for run in (*runs.values(), *tried.values()))
    cells = []
    for variant, step in steps.items():
        mean = step.cost.mean_per_step(float(plan.settings[variant].get("language_first", 0)))
        cells.append([variant, f"{mean / 1e12:,.2f}", f"{step.memory / 2**30:.1f}"])
    hours = flops / (args.tflops * 1e12) / 3600
    return "\n".join(
        [
            table(["variant", "TFLOPs a step", "GiB"], cells),
            "",
            f"{len(runs)} different runs and {len(tried)} to choose learning rates: {flops / 1e15:,.1f} PFLOPs, "
            f"{hours:,.1f} hours of training at {args.tflops:g} useful TFLOPs a second. Loading, continuations and "
            "tests come on top.",
        ]
    )


class Step(NamedTuple):
    """What a step of a variant takes: FLOPs by stage, and bytes of memory."""

    cost: Cost
    memory: int


def _step(args: AblationArguments, speed: dict[str, Any], run: Run) -> Step:
    """Returns what a step of a run takes."""
    fixed = {**speed, "output_dir": "dry_run", "eval_strategy": "no", "save_strategy": "no"}
    method, adapters, batches, _, training = build_options(
        GROUPS, {**run.settings, **fixed}, f"variant {run.variant!r}"
    )
    model = ModelArguments(args.base_model, dtype=args.base_dtype)
    fields = {"num_identities": IDENTITIES, **method.given()}
    own: Any = load_config(model, dict(fields))
    flops = [0.0, step_flops(own, adapters, training, batches, dtype=model.torch_dtype)]
    if run.stages[0]:
        language: Any = load_config(model, {**fields, "loss_lambda": 0.0})
        flops[0] = step_flops(language, adapters, training, batches, dtype=model.torch_dtype)
    memory = estimate_memory(own, adapters, training, batches, dtype=model.torch_dtype)
    return Step(Cost(*flops), memory.total)


def _flops(run: Run, cost: Cost) -> float:
    """Returns the FLOPs of a run."""
    return run.stages[0] * cost.language + run.stages[1] * cost.own
