"""The images of a folder, with what a CSV file and options say about them."""

import csv
import os
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..data.images import broken_images, list_image_tree, safe_join
from ..options.gallery_arguments import AddArguments
from ..retrieval.embeddings import fault_of_name
from ..utils.errors import UserError
from .pictures import check_proportions
from .rows import CropInfo, utc_now

COLUMNS = tuple(field.name for field in fields(CropInfo))
NUMBERS = ("camera_id", "track_id")


def find_crops(args: AddArguments) -> tuple[list[str], list[CropInfo], dict[str, str]]:
    """Lists the images to add, and what is known about each.

    Args:
        args ([`AddArguments`]): The folder or the image, the CSV file, and values for all images.

    Returns:
        `tuple`: Paths, their [`CropInfo`], and the faults of files that are left out, by name.

    Raises:
        UserError: There is no image, one cannot be used and `on_error` is "stop", or the CSV file is not valid.
    """
    folder, names = _listed(args.images)
    common: dict[str, Any] = {"camera_id": args.camera_id, "source": args.source or "", "person": args.person}
    if args.keep_days is not None:
        try:
            common["expires"] = utc_now() + timedelta(days=args.keep_days)
        except OverflowError:
            raise UserError(f"keep_days {args.keep_days}: ends after the year 9999: give fewer days") from None
    known = {} if args.columns is None else _read_csv(Path(args.columns), set(names))
    faults = {name: fault for name in names if (fault := _fault(folder, name, args.any_shape))}
    paths = [folder / name for name in names if name not in faults]
    if args.on_error == "skip":
        broken = broken_images(paths)
        faults |= {paths[place].relative_to(folder).as_posix(): text for place, text in broken.items()}
    if faults and args.on_error == "stop":
        name, fault = next(iter(faults.items()))
        raise UserError(f"{fault} ({len(faults)} such images; --on_error skip leaves them out)")
    left = [name for name in names if name not in faults]
    if not left:
        raise UserError(f"images {args.images}: no image can be used: give a folder that holds crops")
    crops = [CropInfo(**{**common, **known.get(name, {})}) for name in left]
    return [str(folder / name) for name in left], crops, faults


def _listed(images: str) -> tuple[Path, list[str]]:
    """Returns the folder, and the names of its images. Raises UserError if there is none."""
    if os.path.isfile(images):
        return Path(images).parent, [Path(images).name]
    if not os.path.isdir(images):
        raise UserError(f"images {images}: no such folder or image: give the folder that holds the crops")
    names = list_image_tree(images).names
    if not names:
        raise UserError(f"images {images}: no image in it: give a folder that holds crops")
    return Path(images), names


def _fault(folder: Path, name: str, any_shape: bool) -> str | None:
    """Returns why an image cannot be added, without decoding it, or None."""
    if fault := fault_of_name(name):
        return f"images {folder}: {name!r}: {fault}: rename it"
    try:
        if os.path.islink(folder / name):
            safe_join(folder, name)
        if not any_shape:
            check_proportions(folder / name)
    except UserError as error:
        return str(error)
    return None


def _read_csv(path: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """Reads what is known about each image by name. Raises UserError with the line of a mistake."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"columns {path}: cannot be read as UTF-8 text ({error}): give another file") from error
    reader = csv.DictReader(text.splitlines(), strict=True)
    named = list(reader.fieldnames or ())
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"columns {path}: the first line names {twice!r} twice: remove one of them")
    unknown = sorted(set(named) - {"file_name", *COLUMNS})
    if "file_name" not in named or unknown:
        fault = f"unknown column {unknown[0]!r}" if unknown else "no column file_name"
        raise UserError(f"columns {path}: {fault}: the first line names file_name and any of {', '.join(COLUMNS)}")
    known: dict[str, dict[str, Any]] = {}
    try:
        for row in reader:
            where = f"columns {path}: line {reader.line_num}"
            name = row.pop("file_name")
            if None in row or name is None or any(value is None for value in row.values()):
                raise UserError(f"{where}: has another number of columns than the first line")
            if name not in names:
                raise UserError(f"{where}: {name!r}: no such image in the folder: give its path inside the folder")
            if name in known:
                raise UserError(f"{where}: {name!r}: comes twice")
            known[name] = _values(row, where)
    except csv.Error as error:
        raise UserError(f"columns {path}: line {reader.line_num}: {error}: fix the quotes") from error
    return known


def _values(row: Mapping[str, str], where: str) -> dict[str, Any]:
    """Returns the values of a line that are not empty, checked."""
    values: dict[str, Any] = {}
    for name, text in row.items():
        if text.strip():
            try:
                values[name] = int(text) if name in NUMBERS else text.strip()
            except ValueError:
                raise UserError(f"{where}: {name} {text[:40]!r}: give a whole number") from None
    try:
        CropInfo(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return values
