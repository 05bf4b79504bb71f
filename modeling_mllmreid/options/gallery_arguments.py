"""The options of the `gallery` commands: a dataclass for each concern."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..utils.ranges import Count, CountOrZero, NotNegative, Port, Share
from .arguments import ModelArguments

CONDITION = "Condition COLUMN=VALUE, such as source=hall or person=Ida; COLUMN= where the value is unknown."


@dataclass
class PlaceArguments:
    """The gallery, and its audit trail."""

    gallery: str = field(
        metadata={"help": "Folder of the gallery, or its address: s3://BUCKET/NAME, hf://... to read."}
    )
    storage_options: dict[str, str] = field(
        default_factory=dict, metadata={"help": 'Options of a bucket as JSON, such as {"endpoint": "https://..."}.'}
    )
    audit: str | None = field(
        default=None,
        metadata={"help": "Folder of the audit trail. Default: GALLERY.audit next to the gallery."},
    )
    audit_days: Count = field(default=365, metadata={"help": "Days that the audit trail is kept."})


@dataclass
class GalleryModelArguments(ModelArguments):
    """The model: needed for a new gallery; otherwise that of the gallery."""

    model: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Checkpoint, multimodal LLM, vision encoder, FILE.onnx or pedestrians-small."},
    )
    flip_test: bool = field(
        default=False, metadata={"help": "Average the features of each image and its mirror image (new galleries)."}
    )

    def __post_init__(self) -> None:
        if self.model is not None:
            super().__post_init__()


@dataclass
class AddArguments:
    """The images to add, and what is known about them."""

    images: str = field(metadata={"help": "Folder of person crops, with its sub-folders, or one image."})
    keep: Literal["file_name", "thumbnail"] | None = field(
        default=None,
        metadata={
            "help": "New galleries: rows name the image file, or hold a small copy of the image. Default: file_name."
        },
    )
    columns: str | None = field(
        default=None,
        metadata={
            "help": "CSV file with the column file_name and any of camera_id, time, track_id, source, person, expires."
        },
    )
    camera_id: int = field(default=-1, metadata={"help": "Camera of all images."})
    source: str | None = field(default=None, metadata={"help": "Where all images come from, in any words."})
    person: str | None = field(default=None, metadata={"help": "Name of the person on all images."})
    keep_days: Count | None = field(
        default=None, metadata={"help": "Days until `gallery expire` erases the images. Default: no limit."}
    )
    any_shape: bool = field(default=False, metadata={"help": "Take images that are wider than a person, too."})
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "Stop at an image that cannot be used, or leave such images out."}
    )


@dataclass
class WhereArguments:
    """Which rows are meant. Several options: all of them have to be met."""

    cameras: list[int] = field(default_factory=list, metadata={"help": "Rows of these cameras."})
    since: str | None = field(default=None, metadata={"help": "Rows from this time on: 2026-11-28T09:00:00+01:00."})
    until: str | None = field(default=None, metadata={"help": "Rows before this time."})
    where: list[str] = field(default_factory=list, metadata={"help": CONDITION})


@dataclass
class QueryArguments:
    """The query: photos of one person, words, or an image of the gallery."""

    query: list[str] = field(
        default_factory=list, metadata={"help": "Photo of the person; several photos are averaged."}
    )
    words: str | None = field(
        default=None, metadata={"help": "Description of the person, for a model that was trained with reid_text."}
    )
    id: str | None = field(default=None, metadata={"help": "Id of an image in the gallery."})
    top_k: Count = field(default=10, metadata={"help": "Number of images to list; the sheet shows at most 20."})
    threshold: NotNegative | None = field(
        default=None,
        metadata={"help": "Largest cosine distance of a match. Default: the threshold of the model, chosen on val."},
    )
    rerank: bool = field(default=False, metadata={"help": "Order the nearest images by k-reciprocal re-ranking."})
    verify_top: CountOrZero = field(
        default=0,
        metadata={
            "help": "Let the model compare the photo with each of this many nearest images, and order them by the "
            "probability of one person; it must have been trained with pair_weight. 0: none."
        },
    )
    reasons: CountOrZero = field(
        default=0,
        metadata={
            "help": "Let the model describe the photo and this many first images, and print what the descriptions "
            "share: generated text. 0: none."
        },
    )
    approximate: bool = field(
        default=False,
        metadata={"help": "Compare only the rows that the index of `gallery index` finds, and read no others."},
    )
    output: str | None = field(default=None, metadata={"help": "PNG file for a ranked sheet. Default: none is drawn."})
    any_shape: bool = field(default=False, metadata={"help": "Take photos that are wider than a person, too."})


@dataclass
class DeleteArguments:
    """What is erased."""

    query: list[str] = field(
        default_factory=list,
        metadata={"help": "Photo of the person: all rows within the threshold are meant, of those that are chosen."},
    )
    threshold: NotNegative | None = field(
        default=None, metadata={"help": "Largest cosine distance to the photo. Default: the threshold of the model."}
    )
    confirm: bool = field(
        default=False, metadata={"help": "Erase the rows. Without it they are shown and nothing is erased."}
    )
    files: bool = field(default=False, metadata={"help": "Delete their image files too."})
    output: str | None = field(default=None, metadata={"help": "PNG file that shows the rows."})
    any_shape: bool = field(default=False, metadata={"help": "Take photos that are wider than a person, too."})


@dataclass
class ExpireArguments:
    """What happens to the image files of expired rows."""

    files: bool = field(default=False, metadata={"help": "Delete their image files too."})


@dataclass
class InfoArguments:
    """The form of the report."""

    json: bool = field(default=False, metadata={"help": "Print JSON."})


@dataclass
class ServeArguments:
    """Where the server listens, and who may use it. A password or a token comes from the environment."""

    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on. Any other one needs MLLMREID_PASSWORD and user, or MLLMREID_TOKEN."},
    )
    port: Port = field(default=7860, metadata={"help": "Port to listen on; 0 for any free one."})
    user: str | None = field(default=None, metadata={"help": "Name for the password in MLLMREID_PASSWORD."})
    page: bool | None = field(
        default=None, metadata={"help": "Serve a page at /, too. Default: where the extra `page` is installed."}
    )


@dataclass
class IndexArguments:
    """How good the index has to be."""

    recall: Share = field(
        default=0.95, metadata={"help": "Least share of the nearest rows of the exact search that it has to find."}
    )
    top_k: Count = field(default=10, metadata={"help": "Number of nearest rows for which the recall is measured."})


@dataclass
class GroupsArguments:
    """Which crops are taken for one person."""

    confidence: Share | None = field(
        default=None, metadata={"help": "Probability from which groups are joined. Default: that of the calibration."}
    )
    travel_seconds: NotNegative = field(
        default=1.0, metadata={"help": "Crops of two cameras that are nearer in time are two people. 0: no such rule."}
    )
    overlapping: list[str] = field(
        default_factory=list, metadata={"help": "Pairs of cameras that see the same place, such as 1-2: no such rule."}
    )
    duplicates: bool = field(default=False, metadata={"help": "List crops that are almost the same picture."})
    output: str | None = field(default=None, metadata={"help": "CSV file with the group of each row. Default: none."})


@dataclass
class DecisionArguments:
    """Which rows a decision concerns, by groups or by conditions, and the name that it gives."""

    groups: str | None = field(default=None, metadata={"help": "File that `gallery groups --output` wrote."})
    group: list[int] = field(default_factory=list, metadata={"help": "Groups of this file; several are one person."})
    person: str | None = field(
        default=None, metadata={"help": "Name of the person. Default: the name that is there, or a new one."}
    )


@dataclass
class RenameArguments:
    """The names."""

    person: str = field(metadata={"help": "Name until now."})
    new: str = field(metadata={"help": "New name. If other rows have it, all of them are one person then."})


@dataclass
class UndoArguments:
    """Which decision is taken back."""

    decision: str | None = field(
        default=None, metadata={"help": "Id of the decision, see `gallery decisions`. Default: the newest."}
    )


@dataclass
class DecisionsArguments:
    """The form of the list."""

    json: bool = field(default=False, metadata={"help": "Print JSON."})


@dataclass
class ExportArguments:
    """The file."""

    output: str = field(metadata={"help": "File that ends in .csv, .json or .parquet; Parquet has the features too."})


def storage_options(options: dict[str, Any]) -> dict[str, str]:
    """Returns options of a bucket as texts."""
    return {name: str(value) for name, value in options.items()}
