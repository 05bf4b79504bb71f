"""The plan of an ablation: its arguments, and a run for each row, training set, budget and seed."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...utils.errors import UserError
from ...utils.ranges import AtMostThousand, CountOrZero, NotNegative, Processes, Seed, Share

FEATURES = ("vision", "llm", "concat")
BUDGETS = ("steps", "flops")
TINY = "tiny"


@dataclass
class AblationArguments:
    """The plan. All other fields of the configuration are what every row shares."""

    rows: dict[str, dict] = field(
        metadata={"help": "Name -> the fields in which a row differs from the others, as JSON."}
    )
    contrasts: dict[str, list] = field(
        metadata={"help": "Name -> [a, b] for a less b; a and b: a row, or a list of rows whose mean is meant."}
    )
    train_sets: list[str] = field(metadata={"help": "Sets to train on, each in runs of its own; a+b is one of them."})
    test_sets: list[str] = field(metadata={"help": "Sets whose query and gallery every run is tested on."})
    base_model: str = field(
        default=TINY,
        metadata={"help": "A native LLaVA that every run begins with; tiny: one made and taught here, no download."},
    )
    base_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Number format of the base's frozen weights, as train's dtype."}
    )
    data_dirs: dict[str, str] = field(default_factory=dict, metadata={"help": "Each set's folder, as JSON."})
    captions_files: dict[str, str] = field(default_factory=dict, metadata={"help": "Each set's captions, as JSON."})
    seeds: list[Seed] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Of batches, augmentation and heads."}
    )
    budgets: list[str] = field(
        default_factory=lambda: ["steps"],
        metadata={"help": "steps: every row takes max_steps. flops: as many as cost what flops_of costs in max_steps."},
    )
    flops_of: str | None = field(default=None, metadata={"help": "The row whose cost the others get under flops."})
    flops_tolerance: NotNegative = field(
        default=0.05, metadata={"help": "A row whose cost differs by less than this share keeps max_steps under flops."}
    )
    sweep_of: str | None = field(default=None, metadata={"help": "The row that is repeated over sweep_lambdas."})
    sweep_lambdas: list[Share] = field(default_factory=list, metadata={"help": "Values of loss_lambda for sweep_of."})
    agreement_of: str | None = field(
        default=None, metadata={"help": "The row whose texts are drawn beside their images; by default flops_of."}
    )
    agreement_images: CountOrZero = field(
        default=200, metadata={"help": "Images of different people that both branches are compared on; 0: none."}
    )
    processes: Processes = field(default=1, metadata={"help": "Runs at once; on one GPU as many as its memory holds."})
    threads: AtMostThousand = field(default=1, metadata={"help": "Threads of torch in each run."})


@dataclass
class ControlArguments:
    """What only an ablation does to a row: its texts are spoilt, or its losses come one after the other."""

    permute_captions: bool = field(
        default=False, metadata={"help": "The placebo: every person's images get the texts of another person."}
    )
    caption_noise: float = field(
        default=0.0, metadata={"help": "Share of the images whose texts are those of an image of another person."}
    )
    language_first: float = field(
        default=0.0,
        metadata={"help": "Share of the steps that train the language loss alone, before the row's own losses."},
    )
    attribute_weight: float = field(
        default=0.0,
        metadata={"help": "The oracle: weight of a loss on the captions' attribute words, by the vision feature."},
    )

    def __post_init__(self) -> None:
        for name in ("caption_noise", "language_first"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give a share, at least 0 and below 1")
        if self.attribute_weight < 0:
            raise ValueError(f"attribute_weight {self.attribute_weight}: give 0 or more")
        if self.permute_captions and self.caption_noise:
            raise ValueError("permute_captions and caption_noise: give one, the placebo has no true caption to spoil")


def variant_names(side: Any) -> list[str]:
    """The rows that one side of a contrast names."""
    return [side] if isinstance(side, str) else list(side)


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
NOT_COMPARED = (*SPEED, "output_dir", "seed", "max_steps")


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


def all_variants(args: AblationArguments) -> dict[str, dict[str, Any]]:
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
    rows = all_variants(args)
    if not rows:
        raise UserError("rows: there is none: give at least one")
    for name, sides in args.contrasts.items():
        if not isinstance(sides, list) or len(sides) != 2 or not all(map(_is_side, sides)):
            raise UserError(f"contrasts: {name!r} is not [a, b]: give two rows, or two lists of rows")
        for row in (*variant_names(sides[0]), *variant_names(sides[1])):
            _known(row, rows, f"contrasts: {name!r}")
    for budget in args.budgets:
        if budget not in BUDGETS:
            raise UserError(f"budgets: {budget!r} is unknown: give {' or '.join(BUDGETS)}")
    if "flops" in args.budgets:
        _known(args.flops_of, rows, "flops_of")
    if args.agreement_of is not None:
        _known(args.agreement_of, rows, "agreement_of")
    for name in ("train_sets", "test_sets", "seeds", "budgets"):
        values = getattr(args, name)
        if not values or len(set(values)) != len(values):
            raise UserError(f"{name}: {values}: give at least one, each once")
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
