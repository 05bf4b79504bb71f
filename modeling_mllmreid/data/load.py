"""`load_reid_dataset`: loads person data by the name of a reader, from a saved folder or from the Hub."""

import difflib
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
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
from .readers.caption_sets import MAX_CAPTION
from .readers.own_data import UNSPLIT
from .splits import make_splits, note_test_people

# Every line of `skipped_file` ends with this mark, which identifies the file before it is overwritten.
LEFT_OUT = " [left out]"
# The readers of a user's own data, and the origin of the splits that the data may have.
OWN_DATA_READERS = {"folders": "the folders", "table": "the column split"}
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
    """Loads person images as a `DatasetDict` with the splits `train`, `val`, `query` and `gallery` that the data has.

    Every split has the columns `image`, `person_id`, `camera_id` (-1 where unknown), `caption` (a list), `continuation`
    (a list), `source` and `file_name`. Optional columns are `track_id`, `clothes_id`, `person_name` and `camera_name`.
    Images are not copied. Own data without splits gets them at the first load, and a file records them.

    Args:
        name_or_path (`str` or `os.PathLike`): one of
            - the name of a reader, such as `"market1501"`, `"folders"` or `"table"`; `data_dir` is its folder,
            - a folder written by the command `prepare` or by `DatasetDict.save_to_disk`,
            - the name of a prepared data set on the Hub (`"owner/name"`),
            - with `columns`, any data set that `datasets.load_dataset` loads,
            - several data sets or a protocol, such as `"market1501+cuhk03"`, `"market1501>msmt17"` or `"P-1"`;
              `data_dirs` are their folders.
        data_dir (`str` or `os.PathLike`, *optional*): the folder that the reader reads.
        texts (`str` or `os.PathLike`, *optional*): a `texts.jsonl` whose continuations fill the column `continuation`.
        on_error (`str`, defaults to `"stop"`): `"stop"` raises the first problem. `"skip"` leaves out the samples that
            cannot be used and the images that do not open, and lists them in `skipped_file`.
        skipped_file (`str` or `os.PathLike`, defaults to `"skipped.txt"`): the list that `on_error="skip"` writes.
        notes (`list[str]`, *optional*): a list that receives notes about own data, one line each: how many people are
            in the test splits, which images are in no split or left out.
        **options: further options; None means not given.
            - `captions_file`: captions of the images. A `.jsonl` file of the command `caption` fits any data set, other
              files are an option of the reader.
            - `data_dirs` (`Mapping[str, str]`): data set -> folder, for several data sets.
            - `columns` (`Mapping[str, str]`): column of the contract -> column of the data set.
            - `splits_file`, `test_share`, `split_seed`: the file that records the splits of own data (`splits.json` in
              `data_dir`), the share of the people in the test splits (0.5) and the seed of the draw (0);
              `new_people="train"` trains on the people who came after the draw too.
            - the options of the reader, such as `strict`, `boxes` (CUHK03) or `train_part` (MSMT17).

    Returns:
        `DatasetDict`: the splits with the columns of the data contract.

    Raises:
        UserError: the name is unknown (the message gives the nearest known one), an option does not apply, a folder or
            a column is missing or wrong, a sample cannot be used, or the texts do not belong to the data.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from modeling_mllmreid import load_reid_dataset

    >>> with TemporaryDirectory() as folder:
    ...     for person in ("anna", "ben", "cleo", "dan"):
    ...         (Path(folder) / person).mkdir()
    ...         for number in range(2):
    ...             Image.new("RGB", (32, 64)).save(Path(folder) / person / f"{number}.jpg")
    ...     dataset = load_reid_dataset("folders", data_dir=folder)
    >>> {name: len(split) for name, split in dataset.items()}
    {'train': 4, 'query': 2, 'gallery': 2}
    >>> sorted(set(dataset["train"]["person_name"]) & set(dataset["query"]["person_name"]))
    []

    ```
    """
    problems = Problems(on_error, log=notes is None)
    if on_error == "skip":
        check_output(skipped_file, ours=_is_skipped_file)
    is_sidecar = str(options.get("captions_file") or "").endswith(".jsonl")
    captions = options.pop("captions_file") if is_sidecar else None
    dataset = _read(str(name_or_path), data_dir, problems, **options)
    if on_error == "skip":
        dataset = DatasetDict({name: _without_broken_images(split, problems) for name, split in dataset.items()})
    if problems.messages:
        with atomic_file(skipped_file) as temporary:
            text = "".join(message.replace("\n", "\\n") + f"{LEFT_OUT}\n" for message in problems.messages)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        problems.warn(f"{len(problems.messages):,} rows were left out, listed in {skipped_file}")
    if notes is not None:
        notes += problems.notes
    if captions is not None:
        dataset = _with_captions(dataset, captions)
    _refuse_long_captions(dataset)
    return dataset if texts is None else _with_texts(dataset, texts)


def _is_skipped_file(path: Path) -> bool:
    """Returns whether `load_reid_dataset` wrote this list of skipped samples."""
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
    new_people: str | None = None,
    **options: Any,
) -> DatasetDict:
    """Loads the data set without generated texts. The options are those of `load_reid_dataset`."""
    if not name:
        raise UserError("dataset: is empty: give a reader's name, a folder or a name on the Hub")
    options = {option: value for option, value in options.items() if value is not None}
    draw = {"test_share": test_share, "split_seed": split_seed, "new_people": new_people}
    all_split_options = {"splits_file": splits_file, **draw}
    split_options = {option: value for option, value in all_split_options.items() if value is not None}
    combination = parse_combination(name)
    if combination is not None:
        return _load_combination(name, combination, data_dirs or {}, problems, {**split_options, **options})
    if data_dirs:
        raise UserError(f"data set {name}: data_dirs is for several sets: give data_dir")
    if columns is not None or name not in READERS:
        given_options = [*([] if data_dir is None else ["data_dir"]), *split_options, *options]
        return _read_without_reader(name, columns, given_options, problems)
    if data_dir is None:
        raise UserError(f"data set {name}: data_dir is not given: give the folder that holds it")
    reader = READERS[name]
    known = [option for option in inspect.signature(reader).parameters if option not in ("data_dir", "problems")]
    for option in options:
        if option not in known:
            raise UserError(f"data set {name} has no option {option!r}: it takes {', '.join(known)}")
    dataset = reader(data_dir, problems=problems, **options)
    if list(dataset) != [UNSPLIT]:
        _refuse_options(f"data set {name} in {data_dir} has splits of its own", list(split_options))
        if name in OWN_DATA_READERS:
            _note_test_people(dataset, OWN_DATA_READERS[name], problems)
        return dataset
    path = Path(data_dir) / "splits.json" if splits_file is None else splits_file
    return make_splits(
        dataset[UNSPLIT], path, test_share=test_share, seed=split_seed, new_people=new_people, problems=problems
    )


def _read_without_reader(
    name: str, columns: Mapping[str, str] | None, given_options: Sequence[str], problems: Problems
) -> DatasetDict:
    """Loads a data set by its columns, from the Hub or from a saved folder. The options of readers do not apply."""
    if columns is not None:
        _refuse_options(f"data set {name} is read by its columns", given_options)
        dataset = read_mapped(name, columns)
    elif HUB_NAME.fullmatch(name) and not os.path.exists(name):
        _refuse_options(f"data set {name} is of the Hub", given_options)
        dataset = read_prepared(name)
    else:
        dataset = _load_saved(Path(name), given_options)
    sources = {source for split in dataset.values() for source in split.unique("source")}
    if not sources <= READERS.keys() - OWN_DATA_READERS.keys():
        _note_test_people(dataset, name, problems)
    return dataset


def _note_test_people(dataset: DatasetDict, origin: str, problems: Problems) -> None:
    """Notes how many people of own data are in the test splits. origin: where the splits come from."""
    note_test_people(
        dataset, (person for split in dataset.values() for person in person_names(split)), origin, problems
    )


def _refuse_options(reason: str, given_options: Sequence[str]) -> None:
    """Raises UserError where an option is given that does not apply."""
    if given_options:
        raise UserError(f"{reason}, {', '.join(given_options)} does not apply: leave it out")


def _without_broken_images(split: Dataset, problems: Problems) -> Dataset:
    """Returns the split without the rows whose image does not open."""
    broken = broken_images(image_sources(split))
    for problem in dict.fromkeys(broken.values()):
        problems.report(UserError(problem))
    return split.select([row for row in range(len(split)) if row not in broken]) if broken else split


def _load_combination(
    name: str, combination: Combination, data_dirs: Mapping[str, str], problems: Problems, options: dict[str, Any]
) -> DatasetDict:
    """Returns `train` of all sources, and query and gallery of the target if there is one whose folder is given."""
    if options:
        raise UserError(f"data set {name}: {', '.join(options)} does not apply to several sets: leave it out")
    missing = [source for source in combination.sources if source not in data_dirs]
    if missing:
        raise UserError(f"data set {name}: data_dirs has no folder of {', '.join(missing)}: add it")
    loaded = {source: _read(source, data_dirs[source], problems) for source in combination.sources}
    dataset = DatasetDict(train=combine(loaded, all_splits=combination.all_splits))
    if len(combination.targets) == 1 and combination.targets[0] in data_dirs:
        target = _read(combination.targets[0], data_dirs[combination.targets[0]], problems)
        dataset |= {split: target[split] for split in ("query", "gallery") if split in target}
    return DatasetDict(dataset)


def _load_saved(path: Path, given_options: Sequence[str]) -> DatasetDict:
    """Loads a folder that `save_to_disk` or `prepare` wrote."""
    if not os.path.isdir(path):
        nearest = difflib.get_close_matches(str(path).lower(), READERS, n=1, cutoff=0)[0]
        raise UserError(
            f"data set {str(path)!r} is unknown and no such folder exists: did you mean {nearest!r}? "
            f"(known: {', '.join(READERS)})"
        )
    if given_options:
        options = ", ".join(given_options)
        raise UserError(f"{path} is a saved data set, {options} does not apply: leave it out or name a reader")
    refuse_special_files(path)
    try:
        if (path / "data").is_dir() and any((path / "data").glob("*.parquet")):
            return read_prepared(path)
        dataset = load_from_disk(str(path))
    except UserError:
        raise
    except Exception as error:  # an incomplete folder raises errors of JSON, Arrow or file reading
        raise UserError(
            f"{path}: not a data set that save_to_disk wrote ({' '.join(str(error).split())[:200]}): "
            f"to read an image folder name its reader ({', '.join(READERS)}) and give it as data_dir"
        ) from error
    if isinstance(dataset, Dataset):
        raise UserError(f"{path}: a single split: save a DatasetDict with train, val, or query and gallery")
    return with_contract_columns(dataset, str(path))


def _refuse_long_captions(dataset: DatasetDict) -> None:
    """Raises UserError for a caption that would fill the memory, from whatever file it comes."""
    for name, split in dataset.items():
        texts = pc.list_flatten(split.select_columns("caption").with_format("arrow")[:]["caption"])
        longest = pc.max(pc.utf8_length(texts)).as_py() or 0
        if longest >= MAX_CAPTION:
            rows = zip(split["file_name"][:], split["caption"][:], strict=True)
            file_name = next(file for file, captions in rows if longest in map(len, captions))
            raise UserError(
                f"{file_name} ({name}): a caption has {longest:,} characters: give fewer than {MAX_CAPTION:,}"
            )


def _with_captions(dataset: DatasetDict, captions: str) -> DatasetDict:
    """Joins generated captions to the images of the data set."""
    records = read_records(captions, CaptionRecord)
    try:
        joined = DatasetDict({name: join_captions(split, name, records) for name, split in dataset.items()})
    except UserError as error:
        raise UserError(f"{captions}: {error}") from None
    if not any(caption for split in joined.values() for caption in split["caption"]):
        raise UserError(f"{captions}: no record belongs to this data set: give the captions that were written for it")
    return joined


def _with_texts(dataset: DatasetDict, texts: str | os.PathLike[str]) -> DatasetDict:
    """Joins generated continuations to the captions of the data set."""
    records = read_records(texts)
    try:
        joined = DatasetDict({name: join_continuations(split, name, records) for name, split in dataset.items()})
    except UserError as error:
        raise UserError(f"{texts}: {error}") from None
    if all(joined[name] is split for name, split in dataset.items()):
        raise UserError(f"{texts}: no record belongs to this data set: give the texts that were written for it")
    return joined
