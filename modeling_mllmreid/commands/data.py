"""`data`: checks a data set: its counts against the published ones, broken images, copies across splits."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..data.contract import CountMismatch
from ..data.inspection import contact_sheet, describe, examine_images, shared_persons
from ..data.leakage import shared_people, shared_people_lines
from ..data.load import load_reid_dataset
from ..data.readers import READERS
from ..evaluation.report import align
from ..options.data_arguments import DataArguments
from ..options.parser import parse
from ..utils.outputs import check_output, write_json

MAX_LINES = 5


@dataclass
class InspectionArguments:
    """What is checked, and where the report is written."""

    output_dir: str = field(default="runs/data", metadata={"help": "Folder for data.json and sheet.png."})
    images: bool = field(
        default=True, metadata={"help": "Read every image: find broken images and copies, draw a contact sheet."}
    )


def main(argv: list[str]) -> None:
    """Prints a summary of a data set; writes data.json and, if the images are read, a contact sheet."""
    data_args, args = parse((DataArguments, InspectionArguments), argv, "data")
    folder = Path(args.output_dir)
    for name in ("data.json", *(["sheet.png"] if args.images else [])):
        check_output(folder / name)
    data_args.refuse_inside(args.output_dir)
    notes: list[str] = []
    dataset, verdict = load_with_verdict(data_args, notes)
    leaks = shared_people(dataset)
    metadata = {split: describe(dataset[split]) for split in dataset}
    report: dict[str, Any] = {
        "dataset": data_args.dataset,
        "published_counts": verdict,
        "parts": metadata,
        "shared_person_numbers": shared_persons(dataset),
        "shared_people": leaks,
        "notes": notes,
    }
    print(f"{data_args.dataset}: {verdict}\n\n{format_counts(metadata)}")
    for line in [*notes, *(f"leak: {line}" for line in shared_people_lines(dataset))]:
        print(line)
    for pair, count in report["shared_person_numbers"].items():
        if count and pair not in leaks:
            print(f"{pair} share {count:,} person numbers (no leak if each split has its own numbers, as in MSMT17)")
    if args.images:
        broken, copies = examine_images(dataset)
        report |= {"broken_images": broken, "copies_across_parts": copies}
        print_list(f"{len(broken):,} broken images", broken)
        print_list(f"{len(copies):,} images with copies in another split", [format_group(group) for group in copies])
    write_json(folder / "data.json", report)
    print(f"data: {folder / 'data.json'}")
    if args.images and not report["broken_images"]:
        contact_sheet(folder / "sheet.png", dataset)
        print(f"contact sheet: {folder / 'sheet.png'}")


def load_with_verdict(data_args: DataArguments, notes: list[str]) -> tuple[DatasetDict, str]:
    """Loads the data set and compares its counts with the published ones. notes: see `load_reid_dataset`."""
    options = {**data_args.options(), "notes": notes}
    reader = READERS.get(data_args.dataset)
    if reader is None or "strict" not in inspect.signature(reader).parameters or data_args.columns is not None:
        return load_reid_dataset(data_args.dataset, **options), "no published counts are known"
    try:
        dataset = load_reid_dataset(data_args.dataset, **{**options, "strict": True})
    except CountMismatch as mismatch:
        if data_args.strict:
            raise
        return load_reid_dataset(data_args.dataset, **{**options, "strict": None}), str(mismatch).removesuffix(
            ", or leave `strict` out"
        )
    return dataset, "the counts are the published ones"


def format_counts(counts: dict[str, dict[str, Any]]) -> str:
    """Formats the counts as a table with a line per split."""
    lines = [["", "images", "persons", "images per person", "cameras", "captions", "words per caption", "vocabulary"]]
    for split, values in counts.items():
        cameras = str(len(values["cameras"])) if values["cameras"] else "unknown"
        lines.append(
            [
                split,
                f"{values['images']:,}",
                f"{values['persons']:,}",
                _spread(values["images_of_a_person"]),
                cameras,
                f"{values['captions']:,}",
                _spread(values["words_of_a_caption"]),
                f"{values['vocabulary']:,}" if values["captions"] else "-",
            ]
        )
    return align(lines)


def print_list(title: str, items: list[str]) -> None:
    """Prints a title and the first items below it."""
    print("\n".join([title, *(f"  {item}" for item in items[:MAX_LINES])]))
    if len(items) > MAX_LINES:
        print(f"  and {len(items) - MAX_LINES:,} more, all in data.json")


def format_group(names: list[str], limit: int = 3) -> str:
    """Formats the names of copies of one image in one line."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return " = ".join(names[:limit]) + more


def _spread(spread: dict[str, float] | None) -> str:
    """Formats a range with its mean."""
    return "-" if spread is None else f"{spread['min']}-{spread['max']}, mean {spread['mean']:.1f}"
