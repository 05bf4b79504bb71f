"""The options of data that several commands share: the data set, licences of texts, and checks of training data."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.licences import normal_licence
from ..data.readers import READERS
from ..utils.errors import UserError
from ..utils.ranges import CountOrZero, Seed


@dataclass
class DataArguments:
    """The data set and its files."""

    dataset: str = field(
        metadata={
            "help": f"A reader ({', '.join(READERS)}), a folder of save_to_disk or prepare, or a name on the Hub."
        }
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the data set."})
    data_dirs: dict[str, str] | None = field(
        default=None,
        metadata={"help": "Folder of each data set, as JSON, for several sets (a+b, a>b, P-1, P-2:a, P-3:a)."},
    )
    captions_file: str | None = field(
        default=None,
        metadata={"help": "File of captions: .jsonl of the caption command, or JSON as of CUHK-PEDES."},
    )
    train_part: Literal["with_val", "without_val"] | None = field(
        default=None,
        metadata={"help": "msmt17: train on list_train and list_val (default, 32,621 images), or on list_train."},
    )
    split: CountOrZero | None = field(
        default=None,
        metadata={"help": "viper, prid, grid, ilids: number of the random split, from 0."},
    )
    boxes: Literal["detected", "labelled"] | None = field(
        default=None, metadata={"help": "cuhk03: boxes of a detector (default) or labelled by hand."}
    )
    distractors: str | None = field(
        default=None, metadata={"help": "market1501: folder in data_dir with the 500,000 distractors."}
    )
    columns: dict[str, str] | None = field(
        default=None,
        metadata={
            "help": 'Column names as JSON, ours to theirs: \'{"person_id": "pid"}\' reads any data set of the Hub.'
        },
    )
    splits_file: str | None = field(
        default=None, metadata={"help": "File with the splits of own data. Default: splits.json in data_dir."}
    )
    test_share: float | None = field(
        default=None,
        metadata={
            "metavar": "0<X<1",
            "help": "Share of people in the test splits of own data. Default: 0.5.",
        },
    )
    split_seed: Seed | None = field(default=None, metadata={"help": "Seed of the splits of own data. Default: 0."})
    new_people: Literal["train"] | None = field(
        default=None,
        metadata={"help": "train: train also on own people who came after the draw; the test stays. Default: unused."},
    )
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "Stop at the first image or entry that cannot be used, or skip all of them."}
    )
    skipped_file: str = field(
        default="skipped.txt", metadata={"help": "File that lists the skipped images and entries."}
    )
    strict: bool = field(
        default=False, metadata={"help": "Refuse a data set whose counts differ from the published ones."}
    )

    def __post_init__(self) -> None:
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise ValueError(f"test_share {self.test_share}: give a share above 0 and below 1")

    def refuse_inside(self, folder: str) -> None:
        """Raises UserError for an output folder that the reader `folders` would read as a person the next time."""
        if self.dataset != "folders" or self.data_dir is None or "\0" in f"{folder}{self.data_dir}":
            return  # other checks refuse an impossible path
        if Path(folder).resolve().is_relative_to(Path(self.data_dir).resolve()):
            raise UserError(
                f"output_dir {folder}: is inside {self.data_dir}, where each folder is a person: give another folder"
            )

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments of `load_reid_dataset`."""
        options = {name: value for name, value in asdict(self).items() if name != "dataset"}
        return {**options, "strict": self.strict or None}


@dataclass
class LicenceArguments:
    """The licence of the base model."""

    licence: str | None = field(
        default=None,
        metadata={"help": "Licence of the base model, such as apache-2.0. Default: the licence on its card."},
    )

    def __post_init__(self) -> None:
        if self.licence is not None and normal_licence(self.licence) is None:
            raise ValueError(
                f"licence {self.licence!r}: not a licence: give a name that the Hub uses, such as apache-2.0"
            )
        self.licence = normal_licence(self.licence)


@dataclass
class LeakArguments:
    """Checks of training data: leakage of test people, and licences of texts."""

    targets: list[str] = field(
        default_factory=list,
        metadata={"help": "Further data sets of the test. Training sets that share people with them are refused."},
    )
    allow_overlap: bool = field(
        default=False, metadata={"help": "Train on test people of a target anyway; the configuration records it."}
    )
    allow_licence: bool = field(
        default=False,
        metadata={"help": "Train on generated texts although the licence of their model forbids it for other models."},
    )
