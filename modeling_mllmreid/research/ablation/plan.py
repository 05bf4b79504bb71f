"""The plan of an ablation: its arguments, and one run for each variant, training set, budget and seed."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...utils.errors import UserError
from ...utils.ranges import AtMostThousand, Count, CountOrZero, NotNegative, Positive, Processes, Seed, Share

FEATURES = ("vision", "llm", "concat")
BUDGETS = ("steps", "flops")
TINY = "tiny"


@dataclass
class AblationArguments:
    """The plan of an ablation. All variants share the other fields of the configuration."""

    variants: dict[str, dict[str, Any]] = field(
        metadata={"help": "Name -> the fields in which the variant differs from the shared ones, as JSON."}
    )
    contrasts: dict[str, list[Any]] = field(
        metadata={"help": "Name -> [a, b] for a minus b, as JSON; a and b: a variant, or a list that is averaged."}
    )
    train_sets: list[str] = field(metadata={"help": "Data sets to train on, each in its own runs; a+b combines two."})
    test_sets: list[str] = field(metadata={"help": "Data sets whose query and gallery test every run."})
    base_model: str = field(
        default=TINY,
        metadata={
            "help": "Native multimodal LLM that every run starts from; tiny: a LLaVA built here, without download."
        },
    )
    teacher_model: str | None = field(
        default=None, metadata={"help": "Native multimodal LLM that writes the continuations. Default: base_model."}
    )
    base_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Number format of the frozen base weights, as dtype of train."}
    )
    data_dirs: dict[str, str] = field(
        default_factory=dict, metadata={"help": "Folder of each data set by its name, as JSON."}
    )
    captions_files: dict[str, str] = field(
        default_factory=dict, metadata={"help": "Captions file of each data set by its name, as JSON."}
    )
    seeds: list[Seed] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of batches, augmentation and heads."}
    )
    seeds_of: dict[str, list[Seed]] = field(
        default_factory=dict,
        metadata={"help": "Name of a variant -> its seeds, where it has fewer; a contrast takes those of both sides."},
    )
    rate_factors: list[Positive] = field(
        default_factory=list,
        metadata={
            "help": "Factors on the learning rates that are tried for each variant; the best on val people is taken. "
            "The sweep has the factor of sweep_of."
        },
    )
    rate_people: Count = field(
        default=60, metadata={"help": "People of the train split who choose among rate_factors, left out meanwhile."}
    )
    budgets: list[str] = field(
        default_factory=lambda: ["steps"],
        metadata={"help": "steps: max_steps for every variant. flops: the FLOPs of flops_of in max_steps for each."},
    )
    flops_of: str | None = field(default=None, metadata={"help": "Variant that sets the budget under flops."})
    flops_tolerance: NotNegative = field(
        default=0.05,
        metadata={"help": "Under flops, a variant keeps max_steps if its cost differs by less than this share."},
    )
    flops_variants: list[str] = field(
        default_factory=list, metadata={"help": "Variants that run under flops. Default: all."}
    )
    sweep_of: str | None = field(default=None, metadata={"help": "Variant that is repeated with every sweep_lambdas."})
    sweep_lambdas: list[Share] = field(default_factory=list, metadata={"help": "Values of loss_lambda for sweep_of."})
    agreement_of: str | None = field(
        default=None, metadata={"help": "Variant whose texts are drawn next to their images. Default: flops_of."}
    )
    agreement_images: CountOrZero = field(
        default=200, metadata={"help": "Number of images, of different people, that compare both branches; 0: none."}
    )
    processes: Processes = field(default=1, metadata={"help": "Runs at once; on one GPU as many as its memory holds."})
    threads: AtMostThousand = field(default=1, metadata={"help": "Threads of torch in each run."})
    dry_run: bool = field(
        default=False, metadata={"help": "Print the runs, FLOPs, memory and hours of the plan, and run nothing."}
    )
    tflops: Positive = field(
        default=100, metadata={"help": "For dry_run: TFLOPs a second that a training step reaches on the device."}
    )


@dataclass
class ControlArguments:
    """The controls that only an ablation has: corrupted texts, losses in two stages, the attribute baseline."""

    permute_captions: bool = field(
        default=False, metadata={"help": "Placebo: the images of each person get the texts of another person."}
    )
    caption_noise: float = field(
        default=0.0, metadata={"help": "Share of the images whose texts are those of an image of another person."}
    )
    language_first: float = field(
        default=0.0,
        metadata={"help": "Share of the steps that only train the language loss, before the variant's own losses."},
    )
    attribute_weight: float = field(
        default=0.0,
        metadata={"help": "Attribute baseline: weight of a loss on the attribute words of the captions, on vision."},
    )

    def __post_init__(self) -> None:
        for name in ("caption_noise", "language_first"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: give a share, at least 0 and below 1")
        if self.attribute_weight < 0:
            raise ValueError(f"attribute_weight {self.attribute_weight}: give 0 or more")
        if self.permute_captions and self.caption_noise:
            raise ValueError("permute_captions and caption_noise: give only one, permuted captions have no true text")


def variant_names(side: Any) -> list[str]:
    """The variants that one side of a contrast names."""
    return [side] if isinstance(side, str) else list(side)


@dataclass(frozen=True)
class Run:
    """One training with its test. Two variants with equal settings are one run.

    Args:
        variant (`str`): Name of the variant.
        train_set (`str`): Data set that it trains on.
        budget (`str`): "steps" or "flops".
        seed (`int`): Seed of batches, augmentation and heads.
        settings (`Mapping[str, Any]`): Every field with a value, the variant's own in place of the shared ones.
        test_sets (`tuple[str, ...]`): Data sets that it is tested on.
        base (`str`): Identity of the base model.
        stages (`tuple[int, int]`): Steps with the language loss alone, and steps with the variant's losses.
        val_people (`int`): People of the train split that it is not trained on but tested on, to choose a rate.
    """

    variant: str
    train_set: str
    budget: str
    seed: int
    settings: Mapping[str, Any]
    test_sets: tuple[str, ...]
    base: str
    stages: tuple[int, int]
    val_people: int = 0

    @property
    def key(self) -> str:
        """A digest of all that the result depends on; the variant's name has no part in it."""
        content: list[Any] = [self.settings, self.train_set, self.seed, self.test_sets, self.base, self.stages]
        content += [self.val_people] if self.val_people else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        """A readable name that ends with the key."""
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.variant} {self.train_set}".lower()).strip("-")
        return f"{name}-{sum(self.stages)}-seed{self.seed}-{self.key}"


# Fields that change the speed or the place of results, not the results.
SPEED = ("dataloader_num_workers", "use_cpu")
NOT_COMPARED = (*SPEED, "output_dir", "seed", "max_steps")


@dataclass(frozen=True)
class Plan:
    """The decisions before the first run.

    Args:
        args (`AblationArguments`): The plan as the user gives it.
        settings (`Mapping[str, Mapping[str, Any]]`): All fields of each variant.
        max_steps (`int`): Steps of a run under the budget "steps".
        base (`str`): Identity of the base model.
        rates (`Mapping[str, Mapping[float, float]]`): mAP on val of each tried factor, by variant; see `choose_rates`.
    """

    args: AblationArguments
    settings: Mapping[str, Mapping[str, Any]]
    max_steps: int
    base: str
    rates: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def run(self, variant: str, train_set: str, budget: str, seed: int, cost: "Cost | None" = None) -> Run:
        """One run. cost: the FLOPs of the variant's steps, for the budget "flops"."""
        steps, settings = self.max_steps, self.settings[variant]
        language_first = settings.get("language_first", 0.0)
        if cost is not None:
            ratio = cost.reference / cost.mean_per_step(language_first)
            if abs(1 - 1 / ratio) >= self.args.flops_tolerance:
                steps = max(1, round(self.max_steps * ratio))
        stages = (round(steps * language_first), steps - round(steps * language_first))
        return Run(variant, train_set, budget, seed, settings, tuple(self.args.test_sets), self.base, stages)

    def first(self, variant: str) -> Run:
        """The variant's run with the first data set and seed, under the budget "steps"."""
        return self.run(variant, self.args.train_sets[0], "steps", self.args.seeds[0])

    def variants(self, budget: str) -> list[str]:
        """The variants that run under a budget."""
        chosen = self.args.flops_variants if budget == "flops" else []
        return [variant for variant in self.settings if not chosen or variant in chosen]

    def runs(self, costs: Mapping[str, "Cost"]) -> list[Run]:
        """Every run; those of one seed are adjacent, so that an interrupted ablation has whole seeds."""
        return [
            self.run(variant, train_set, budget, seed, costs[variant] if budget == "flops" else None)
            for budget in self.args.budgets
            for seed in self.args.seeds
            for train_set in self.args.train_sets
            for variant in self.variants(budget)
            if seed in self.args.seeds_of.get(variant, self.args.seeds)
        ]


@dataclass(frozen=True)
class Cost:
    """FLOPs of a variant.

    Args:
        language (`float`): FLOPs of a step with the language loss alone.
        own (`float`): FLOPs of a step with the variant's losses.
        reference (`float`): FLOPs of a step of the variant that sets the budget.
    """

    language: float
    own: float
    reference: float = 0.0

    def mean_per_step(self, language_first: float) -> float:
        """The mean over the steps of both stages."""
        return language_first * self.language + (1 - language_first) * self.own


def all_variants(args: AblationArguments) -> dict[str, dict[str, Any]]:
    """The variants by name, those of the sweep last. Raises UserError for a variant that is no mapping."""
    variants: dict[str, dict[str, Any]] = {}
    for name, fields in args.variants.items():
        if not isinstance(fields, dict):
            raise UserError(f"variants: {name!r} is not a mapping of fields: write the fields in which it differs")
        variants[str(name)] = dict(fields)
    if args.sweep_lambdas:
        source = _known(args.sweep_of, variants, "sweep_of")
        variants |= {name: {**variants[source], "loss_lambda": value} for value, name in sweep_names(args).items()}
    return variants


def sweep_names(args: AblationArguments) -> dict[float, str]:
    """The names of the variants of the sweep, by lambda."""
    return {value: f"{args.sweep_of}, lambda {value:g}" for value in args.sweep_lambdas}


def check_plan(args: AblationArguments) -> dict[str, dict[str, Any]]:
    """The variants of a plan, with the sweep. Raises UserError naming the field that does not fit."""
    variants = all_variants(args)
    if not variants:
        raise UserError("variants: there is none: give at least one")
    for name, sides in args.contrasts.items():
        if not isinstance(sides, list) or len(sides) != 2 or not all(map(_is_side, sides)):
            raise UserError(f"contrasts: {name!r} is not [a, b]: give two variants, or two lists of variants")
        for variant in (*variant_names(sides[0]), *variant_names(sides[1])):
            _known(variant, variants, f"contrasts: {name!r}")
    for budget in args.budgets:
        if budget not in BUDGETS:
            raise UserError(f"budgets: {budget!r} is unknown: give {' or '.join(BUDGETS)}")
    if "flops" in args.budgets:
        _known(args.flops_of, variants, "flops_of")
    _check_subsets(args, variants)
    if args.agreement_of is not None:
        _known(args.agreement_of, variants, "agreement_of")
    for name in ("train_sets", "test_sets", "seeds", "budgets"):
        values = getattr(args, name)
        if not values or len(set(values)) != len(values):
            raise UserError(f"{name}: {values}: give at least one, each once")
    if args.processes < 1 or args.threads < 1:
        raise UserError(f"processes {args.processes}, threads {args.threads}: give at least 1")
    return variants


def _check_subsets(args: AblationArguments, variants: Mapping[str, Any]) -> None:
    """Raises UserError for variants under flops, or seeds of single variants, that leave nothing to compare."""
    for variant in args.flops_variants:
        _known(variant, variants, "flops_variants")
    if args.flops_variants and args.budgets != ["steps", "flops"]:
        raise UserError(
            f"flops_variants: the other variants need equal steps: set budgets {args.budgets} to steps flops"
        )
    for variant, seeds in args.seeds_of.items():
        _known(variant, variants, "seeds_of")
        if not seeds or len(set(seeds)) != len(seeds) or not set(seeds) <= set(args.seeds):
            raise UserError(f"seeds_of: {variant!r} has {seeds}: give at least one of seeds ({args.seeds}), each once")
    for name, sides in args.contrasts.items():
        if not contrast_seeds(args, sides):
            raise UserError(f"seeds_of: contrast {name!r} has no seed that all its variants run with: give them one")


def contrast_seeds(args: AblationArguments, sides: Sequence[Any]) -> list[int]:
    """The seeds that all variants of a contrast run with."""
    variants = [variant for side in sides for variant in variant_names(side)]
    return [seed for seed in args.seeds if all(seed in args.seeds_of.get(name, args.seeds) for name in variants)]


def _is_side(side: Any) -> bool:
    """Whether it is the name of a variant or a list of names."""
    return isinstance(side, str) or (isinstance(side, list) and len(side) > 0 and all(isinstance(n, str) for n in side))


def _known(name: str | None, variants: Mapping[str, Any], where: str) -> str:
    """The name, if there is a variant of that name."""
    if name is None:
        raise UserError(f"{where}: is missing: name one of the variants")
    if name not in variants:
        nearest = difflib.get_close_matches(name, variants, n=1, cutoff=0)[0]
        raise UserError(f"{where}: there is no variant {name!r}: did you mean {nearest!r}?")
    return name
