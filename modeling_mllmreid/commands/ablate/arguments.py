"""What an ablation is told: its rows and contrasts, the sets, seeds and budgets."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ...ranges import AtMostThousand, CountOrZero, NotNegative, Processes, Seed, Share

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
class TreatmentArguments:
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


def row_names(side: Any) -> list[str]:
    """The rows that one side of a contrast names."""
    return [side] if isinstance(side, str) else list(side)
