"""From the configuration to runs: the rows, the contrasts checked, a run for each row, set, budget and seed."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from .arguments import BUDGETS, AblationArguments, row_names


@dataclass(frozen=True)
class Run:
    """One training: what it is told, where it trains and is tested, and the steps of its two stages.

    settings: every field that was given, the row's own in place of the shared ones. stages: language alone, then the
    row's losses. Two rows that are told the same are one run.
    """

    row: str
    train_set: str
    budget: str
    seed: int
    settings: Mapping[str, Any]
    test_sets: tuple[str, ...]
    base: str
    stages: tuple[int, int]

    @property
    def key(self) -> str:
        """A digest of all that the result depends on, however its row is called."""
        told = [self.settings, self.train_set, self.seed, self.test_sets, self.base, self.stages]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """A readable name that ends with the key."""
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.row} {self.train_set}".lower()).strip("-")
        return f"{name}-{sum(self.stages)}-seed{self.seed}-{self.key}"


# Fields that name where results go or how fast they come, not what they are.
SPEED = ("dataloader_num_workers", "use_cpu")
NOT_TOLD = (*SPEED, "output_dir", "seed", "max_steps")


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first run. settings: for each row every field that it is told."""

    args: AblationArguments
    settings: Mapping[str, Mapping[str, Any]]
    max_steps: int
    base: str

    def run(self, row: str, train_set: str, budget: str, seed: int, cost: "Cost | None" = None) -> Run:
        """One run. cost: what the steps of both stages cost, where the budget is in FLOPs."""
        steps, told = self.max_steps, self.settings[row]
        first = told.get("language_first", 0.0)
        if cost is not None:
            ratio = cost.reference / cost.of_steps(first)
            if abs(1 - 1 / ratio) >= self.args.flops_tolerance:
                steps = max(1, round(self.max_steps * ratio))
        stages = (round(steps * first), steps - round(steps * first))
        return Run(row, train_set, budget, seed, told, tuple(self.args.test_sets), self.base, stages)

    def first(self, row: str) -> Run:
        """The row's run with the first set and seed, in steps."""
        return self.run(row, self.args.train_sets[0], "steps", self.args.seeds[0])

    def runs(self, costs: Mapping[str, "Cost"]) -> list[Run]:
        """Every run, those of one seed together, so that a sweep that is cut off has whole seeds."""
        return [
            self.run(row, train_set, budget, seed, costs[row] if budget == "flops" else None)
            for budget in self.args.budgets
            for seed in self.args.seeds
            for train_set in self.args.train_sets
            for row in self.settings
        ]


@dataclass(frozen=True)
class Cost:
    """FLOPs of a row: of a step of the language stage, of a step of its own losses; and of a step of the reference."""

    language: float
    own: float
    reference: float = 0.0

    def of_steps(self, language_first: float) -> float:
        """The mean over the steps of both stages."""
        return language_first * self.language + (1 - language_first) * self.own


def all_rows(args: AblationArguments) -> dict[str, dict[str, Any]]:
    """The rows by name, those of the sweep behind the others. Raises UserError for a row that is no mapping."""
    rows: dict[str, dict[str, Any]] = {}
    for name, fields in args.rows.items():
        if not isinstance(fields, dict):
            raise UserError(f"rows: {name!r} is not a mapping of fields: write the fields in which it differs")
        rows[str(name)] = dict(fields)
    if args.sweep_lambdas:
        source = _known(args.sweep_of, rows, "sweep_of")
        rows |= {sweep_name(source, value): {**rows[source], "loss_lambda": value} for value in args.sweep_lambdas}
    return rows


def sweep_name(row: str, loss_lambda: float) -> str:
    """What a row of the sweep is called."""
    return f"{row}, lambda {loss_lambda:g}"


def check_plan(args: AblationArguments) -> dict[str, dict[str, Any]]:
    """The rows of a plan that holds together. Raises UserError naming the field that does not."""
    rows = all_rows(args)
    if not rows:
        raise UserError("rows: there is none: give at least one")
    for name, sides in args.contrasts.items():
        if not isinstance(sides, list) or len(sides) != 2 or not all(map(_is_side, sides)):
            raise UserError(f"contrasts: {name!r} is not [a, b]: give two rows, or two lists of rows")
        for row in (*row_names(sides[0]), *row_names(sides[1])):
            _known(row, rows, f"contrasts: {name!r}")
    for budget in args.budgets:
        if budget not in BUDGETS:
            raise UserError(f"budgets: {budget!r} is unknown: give {' or '.join(BUDGETS)}")
    if "flops" in args.budgets:
        _known(args.flops_of, rows, "flops_of")
    if args.agreement_of is not None:
        _known(args.agreement_of, rows, "agreement_of")
    for field in ("train_sets", "test_sets", "seeds", "budgets"):
        values = getattr(args, field)
        if not values or len(set(values)) != len(values):
            raise UserError(f"{field}: {values}: give at least one, each once")
    if args.processes < 1 or args.threads < 1:
        raise UserError(f"processes {args.processes}, threads {args.threads}: give at least 1")
    return rows


def _is_side(side: Any) -> bool:
    """Whether it is a row's name or a list of them."""
    return isinstance(side, str) or (isinstance(side, list) and len(side) > 0 and all(isinstance(n, str) for n in side))


def _known(name: str | None, rows: Mapping[str, Any], where: str) -> str:
    if name is None:
        raise UserError(f"{where}: is not given: name one of the rows")
    if name not in rows:
        nearest = difflib.get_close_matches(name, rows, n=1, cutoff=0)[0]
        raise UserError(f"{where}: there is no row {name!r}: did you mean {nearest!r}?")
    return name
