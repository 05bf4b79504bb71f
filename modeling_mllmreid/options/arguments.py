"""Options that several commands share, one dataclass per concern."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..data.licences import normal_licence
from ..data.readers import READERS
from ..utils.errors import UserError
from ..utils.ranges import AtMostMillions, CountOrZero, NotNegative, Pixels, Processes, Seed, Share


@dataclass
class ModelArguments:
    """Which model, and in which number format."""

    model: str = field(metadata={"help": "A checkpoint of ours, or a native LLaVA: a folder or a name on the Hub."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    dtype: Literal["float32", "bfloat16", "float16", "bf16", "fp16"] = field(
        default="float32",
        metadata={"help": "Number format of the weights, in training of the frozen ones; heads: float32."},
    )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format, whichever of its names was given."""
        return getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}.get(self.dtype, self.dtype))


@dataclass
class LicenceArguments:
    """The terms that come with the base model."""

    licence: str | None = field(
        default=None,
        metadata={"help": "Licence of the base model, such as apache-2.0; by default as its card says it."},
    )

    def __post_init__(self) -> None:
        if self.licence is not None and normal_licence(self.licence) is None:
            raise ValueError(f"licence {self.licence!r}: no licence's name: give one as the Hub has it, as apache-2.0")
        self.licence = normal_licence(self.licence)


@dataclass
class MethodArguments:
    """Fields of the model's configuration. What is not given is the checkpoint's own, or a new model's default."""

    height: Pixels | None = field(default=None, metadata={"help": "Height in pixels that crops are resized to."})
    width: Pixels | None = field(default=None, metadata={"help": "Width in pixels that crops are resized to."})
    test_feature: Literal["llm", "vision", "concat"] | None = field(
        default=None, metadata={"help": "The feature that embeddings are made of."}
    )
    feature_after_bn: bool | None = field(
        default=None, metadata={"help": "Take the test feature after the batch norm of the head."}
    )
    reid_on: Literal["llm", "vision", "both"] | None = field(
        default=None,
        metadata={"help": "Which feature the ReID losses act on: the LLM's, the visual encoder's, or both."},
    )
    loss_lambda: float | None = field(
        default=None,
        metadata={
            "metavar": "0<=X<=1",
            "help": "The balance: (1 - loss_lambda) * language loss + loss_lambda * ReID loss.",
        },
    )
    id_weight: NotNegative | None = field(default=None, metadata={"help": "Weight of the ID loss in the ReID loss."})
    triplet_weight: NotNegative | None = field(
        default=None, metadata={"help": "Weight of the triplet loss in the ReID loss."}
    )
    label_smoothing: Share | None = field(default=None, metadata={"help": "Label smoothing of the ID loss."})
    triplet_margin: NotNegative | None = field(
        default=None, metadata={"help": "Margin of the batch-hard triplet loss."}
    )
    triplet_soft_margin: bool | None = field(
        default=None, metadata={"help": "Soft margin log(1 + exp(d)) in place of the hinge."}
    )
    bnneck: bool | None = field(
        default=None, metadata={"help": "Triplet loss before a batch norm, ID classifier after it."}
    )
    llm_layer: int | None = field(
        default=None, metadata={"help": "LLM layer whose image positions are pooled; -1 is the last, after its norm."}
    )
    vision_layer: int | None = field(
        default=None, metadata={"help": "Tower layer whose patches are pooled; by default the one that the LLM reads."}
    )
    distillation_weight: NotNegative | None = field(
        default=None, metadata={"help": "Weight of the distillation of the text branch into the image branch."}
    )
    reid_text: bool | None = field(
        default=None, metadata={"help": "ReID losses on the captions' latents too, for text-to-image search."}
    )

    def given(self) -> dict[str, Any]:
        """The fields that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class DataArguments:
    """Which data set, and where it lies."""

    dataset: str = field(
        metadata={"help": f"A reader ({', '.join(READERS)}), or a folder saved by save_to_disk with the same columns."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "The reader's folder."})
    data_dirs: dict[str, str] | None = field(
        default=None,
        metadata={"help": "For several sets (a+b, a>b, P-1, P-2:a, P-3:a): each one's folder, as JSON."},
    )
    captions_file: str | None = field(
        default=None,
        metadata={"help": "Captions: a .jsonl that caption wrote; for Market-1501's layout also CUHK-PEDES' JSON."},
    )
    train_part: Literal["with_val", "without_val"] | None = field(
        default=None, metadata={"help": "msmt17: train with list_val (the default, 32,621 images) or without."}
    )
    split: CountOrZero | None = field(
        default=None,
        metadata={"help": "viper, prid, grid, ilids: which of the ten (or a file's) splits, from 0."},
    )
    boxes: Literal["detected", "labelled"] | None = field(
        default=None, metadata={"help": "cuhk03: boxes of a detector (the default) or labelled by hand."}
    )
    distractors: str | None = field(
        default=None, metadata={"help": "market1501: the folder in data_dir with the 500,000 further distractors."}
    )
    columns: dict[str, str] | None = field(
        default=None,
        metadata={"help": 'Ours: theirs, such as \'{"person_id": "pid"}\': reads any data set of the Hub or on disk.'},
    )
    splits_file: str | None = field(
        default=None, metadata={"help": "Parts that were made for own data; by default splits.json in data_dir."}
    )
    test_share: float | None = field(
        default=None,
        metadata={
            "metavar": "0<X<1",
            "help": "Share of the people that made test parts take; by default 0.5.",
        },
    )
    split_seed: Seed | None = field(
        default=None, metadata={"help": "Of the people drawn into made parts; by default 0."}
    )
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "Stop at the first row that cannot be used, or leave such rows out."}
    )
    skipped_file: str = field(default="skipped.txt", metadata={"help": "Where rows that were left out are listed."})
    strict: bool = field(default=False, metadata={"help": "Make a mismatch with the published counts an error."})

    def __post_init__(self) -> None:
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ValueError(f"test_share {self.test_share}: give a share above 0 and below 1")

    def refuse_inside(self, folder: str) -> None:
        """Raises UserError for a folder of results that the reader `folders` would take for a person the next time."""
        if self.dataset != "folders" or self.data_dir is None or "\0" in f"{folder}{self.data_dir}":
            return  # what can be no path, the other checks say
        if Path(folder).resolve().is_relative_to(Path(self.data_dir).resolve()):
            raise UserError(
                f"output_dir {folder}: lies inside {self.data_dir}, where each folder is a person: give another folder"
            )

    def options(self) -> dict[str, Any]:
        """What `load_reid_dataset` takes besides the name."""
        options = {name: value for name, value in asdict(self).items() if name != "dataset"}
        return {**options, "strict": self.strict or None}


@dataclass
class EmbeddingArguments:
    """How images go through the model."""

    batch_size: AtMostMillions = field(
        default=64, metadata={"metavar": "N>=1", "help": "Images that go through the model at once."}
    )
    num_workers: Processes = field(
        default=0, metadata={"metavar": "0<=N<=128", "help": "Processes that open and resize images; 0: none besides."}
    )
    flip_test: bool = field(default=False, metadata={"help": "Average the features of an image and its mirror image."})

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size {self.batch_size}, num_workers {self.num_workers}: give at least 1 and at least 0"
            )


@dataclass
class LeakArguments:
    """Which sets the model will be tested on, and what must not be trained on."""

    targets: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets to be tested on, besides those that are given; what overlaps with them is refused."},
    )
    allow_overlap: bool = field(
        default=False, metadata={"help": "Train on test people of a target all the same; the configuration says so."}
    )
    allow_licence: bool = field(
        default=False, metadata={"help": "Train on texts whose writer's licence forbids it for other language models."}
    )
