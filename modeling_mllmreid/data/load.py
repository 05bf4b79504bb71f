"""One door to all person data: a reader by its name, or a folder saved in the data contract."""

import difflib
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk

from ..utils.errors import UserError
from ..utils.json_files import refuse_special_files
from ..utils.outputs import atomic_file, check_output
from .captions import CaptionRecord, join_captions, join_continuations, read_records
from .combinations import Combination, combine, parse_combination
from .contract import Problems, image_sources, person_names, with_contract_columns
from .images import broken_images
from .mapped import read_mapped
from .prepare import read_prepared
from .readers import READERS
from .readers.own_data import WHOLE
from .splits import make_splits, note_tested

# By the ends of its lines a list of skipped rows is known as ours.
LEFT_OUT = " [left out]"
# Own data: where its splits come from, where it has some.
OWN = {"folders": "the folders", "table": "the column split"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_reid_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    texts: str | os.PathLike[str] | None = None,
    on_error: str = "stop",
    skipped_file: str | os.PathLike[str] = "skipped.txt",
    notes: list[str] | None = None,
    **options: Any,
) -> DatasetDict:
    """Person images with the columns of the data contract (`columns.FEATURES`), a split for each part that is there.

    name_or_path: a reader's name, `data_dir` being its folder and `options` its own options (None: not given); a folder
    that `DatasetDict.save_to_disk` or `prepare` wrote, or the latter's name on the Hub (owner/name); with `columns` any
    data set that `datasets.load_dataset` loads, see `read_mapped`; or several sets, or a protocol, as `data.combine`
    writes them, `data_dirs` being their folders.
    Own data without parts gets them by `make_splits` (splits_file, by default splits.json in data_dir, test_share,
    split_seed). texts: a `texts.jsonl` whose continuations are joined. on_error: "stop" at the first row that cannot be
    used, or "skip" such rows, and those of images that do not open, and list them in `skipped_file`. notes: a list that
    gets a line for each thing to know of own data: how many people are tested on, what is in no part or left out.
    captions_file: a `.jsonl` that `caption` wrote, for any data set; other kinds are the reader's own option.
    Raises UserError for an unknown name (with the nearest known), an unknown option, a missing or wrong folder or
    column, and for texts that do not belong to the data.
    """
    problems = Problems(on_error)
    if on_error == "skip":
        check_output(skipped_file, ours=_is_skipped_file)
    generated = str(options.get("captions_file") or "").endswith(".jsonl")
    captions = options.pop("captions_file") if generated else None
    dataset = _read(str(name_or_path), data_dir, problems, **options)
    if on_error == "skip":
        dataset = DatasetDict({split: _opening(part, problems) for split, part in dataset.items()})
    if problems.messages:
        with atomic_file(skipped_file) as aside:
            text = "".join(message.replace("\n", "\\n") + f"{LEFT_OUT}\n" for message in problems.messages)
            aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        problems.warn(f"{len(problems.messages):,} rows were left out, listed in {skipped_file}")
    if notes is not None:
        notes += problems.notes
    if captions is not None:
        dataset = _with_captions(dataset, captions)
    return dataset if texts is None else _with_texts(dataset, texts)


def _is_skipped_file(path: Path) -> bool:
    """Whether a file is a list of skipped rows that we wrote."""
    return all(line.endswith(LEFT_OUT.encode()) for line in path.read_bytes().splitlines())


def _read(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    problems: Problems,
    *,
    data_dirs: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    splits_file: str | os.PathLike[str] | None = None,
    test_share: float | None = None,
    split_seed: int | None = None,
    **options: Any,
) -> DatasetDict:
    """The data set by its name, without generated texts: the options of `load_reid_dataset`."""
    if not name:
        raise UserError("dataset: is empty: give a reader's name, a folder or a name on the Hub")
    options = {option: value for option, value in options.items() if value is not None}
    of_splits = {"splits_file": splits_file, "test_share": test_share, "split_seed": split_seed}
    drawing = {option: value for option, value in of_splits.items() if value is not None}
    combination = parse_combination(name)
    if combination is not None:
        return _load_combination(name, combination, data_dirs or {}, problems, {**drawing, **options})
    if data_dirs is not None:
        raise UserError(f"data set {name}: data_dirs is for several sets: give data_dir")
    reader = READERS.get(name)
    if columns is not None or reader is None:
        given = [*([] if data_dir is None else ["data_dir"]), *drawing, *options]
        if columns is not None:
            _refuse_options(f"data set {name} is read by its columns", given)
            dataset = read_mapped(name, columns)
        elif HUB_NAME.fullmatch(name) and not os.path.exists(name):
            _refuse_options(f"data set {name} is of the Hub", given)
            dataset = read_prepared(name)
        else:
            dataset = _load_saved(Path(name), given)
        sources = {source for part in dataset.values() for source in part.unique("source")}
        if not sources <= READERS.keys() - OWN.keys():
            _note_tested(dataset, name, problems)
        return dataset
    if data_dir is None:
        raise UserError(f"data set {name}: data_dir is not given: give the folder that holds it")
    known = [option for option in inspect.signature(reader).parameters if option not in ("data_dir", "problems")]
    for option in options:
        if option not in known:
            raise UserError(f"data set {name} has no option {option!r}: it takes {', '.join(known)}")
    dataset = reader(data_dir, problems=problems, **options)
    if list(dataset) != [WHOLE]:
        _refuse_options(f"data set {name} in {data_dir} has splits of its own", list(drawing))
        if name in OWN:
            _note_tested(dataset, OWN[name], problems)
        return dataset
    path = Path(data_dir) / "splits.json" if splits_file is None else splits_file
    return make_splits(dataset[WHOLE], path, test_share=test_share, seed=split_seed, problems=problems)


def _note_tested(dataset: DatasetDict, where: str, problems: Problems) -> None:
    """Notes how many of own data's people are tested on. where: what its splits come from."""
    note_tested(dataset, (person for part in dataset.values() for person in person_names(part)), where, problems)


def _refuse_options(what: str, given: Sequence[str]) -> None:
    if given:
        raise UserError(f"{what}, {', '.join(given)} does not apply: leave it out")


def _opening(part: Dataset, problems: Problems) -> Dataset:
    """The part without the rows whose image does not open."""
    broken = broken_images(image_sources(part))
    for problem in dict.fromkeys(broken.values()):
        problems.report(UserError(problem))
    return part.select([row for row in range(len(part)) if row not in broken]) if broken else part


def _load_combination(
    name: str, combination: Combination, data_dirs: Mapping[str, str], problems: Problems, options: dict[str, Any]
) -> DatasetDict:
    """`train` of all sources, and where there is one target whose folder is given its query and gallery."""
    if options:
        raise UserError(f"data set {name}: {', '.join(options)} does not apply to several sets: leave it out")
    missing = [source for source in combination.sources if source not in data_dirs]
    if missing:
        raise UserError(f"data set {name}: data_dirs has no folder of {', '.join(missing)}: name it there")
    loaded = {source: _read(source, data_dirs[source], problems) for source in combination.sources}
    dataset = DatasetDict(train=combine(loaded, all_parts=combination.all_parts))
    if len(combination.targets) == 1 and combination.targets[0] in data_dirs:
        target = _read(combination.targets[0], data_dirs[combination.targets[0]], problems)
        dataset |= {split: target[split] for split in ("query", "gallery") if split in target}
    return DatasetDict(dataset)


def _load_saved(path: Path, given: Sequence[str]) -> DatasetDict:
    if not os.path.isdir(path):
        nearest = difflib.get_close_matches(str(path).lower(), READERS, n=1, cutoff=0)[0]
        raise UserError(
            f"data set {str(path)!r} is unknown and no such folder exists: did you mean {nearest!r}? "
            f"(known: {', '.join(READERS)})"
        )
    if given:
        raise UserError(f"{path} is a saved data set, {', '.join(given)} does not apply: leave it out or name a reader")
    refuse_special_files(path)
    try:
        if (path / "data").is_dir() and any((path / "data").glob("*.parquet")):
            return read_prepared(path)
        dataset = load_from_disk(str(path))
    except UserError:
        raise
    except Exception as error:  # a half-written folder fails in JSON, Arrow or file reading alike
        raise UserError(
            f"{path}: not a data set that save_to_disk wrote ({' '.join(str(error).split())[:200]}): "
            f"to read an image folder name its reader ({', '.join(READERS)}) and give it as data_dir"
        ) from error
    if isinstance(dataset, Dataset):
        raise UserError(f"{path}: a single split: save a DatasetDict with train, val, or query and gallery")
    return with_contract_columns(dataset, str(path))


def _with_captions(dataset: DatasetDict, captions: str) -> DatasetDict:
    """The data set with the captions that were written for its images."""
    records = read_records(captions, CaptionRecord)
    try:
        joined = DatasetDict({name: join_captions(split, name, records) for name, split in dataset.items()})
    except UserError as error:
        raise UserError(f"{captions}: {error}") from None
    if not any(caption for split in joined.values() for caption in split["caption"]):
        raise UserError(f"{captions}: no record is of this data set: give the captions that were written for it")
    return joined


def _with_texts(dataset: DatasetDict, texts: str | os.PathLike[str]) -> DatasetDict:
    records = read_records(texts)
    try:
        joined = DatasetDict({name: join_continuations(split, name, records) for name, split in dataset.items()})
    except UserError as error:
        raise UserError(f"{texts}: {error}") from None
    if all(joined[name] is split for name, split in dataset.items()):
        raise UserError(f"{texts}: no record is of this data set: give the texts that were written for it")
    return joined
