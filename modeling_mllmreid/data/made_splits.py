"""Parts for data that comes without them: people drawn by a seed into training and test, and written down."""

import json
import os
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from ..errors import UserError
from .problems import Problems
from .readers.own_data import WHOLE
from .splits import query_gallery_parts


def make_splits(
    whole: Dataset,
    splits_file: str | os.PathLike[str],
    *,
    test_share: float = 0.5,
    seed: int = 0,
    problems: Problems | None = None,
) -> DatasetDict:
    """`train`, `query` and `gallery` of one unsplit part, without a person in both training and test.

    The share of the people is drawn by the seed, whatever the rows' order; one image per person and camera asks. The
    file names of each part are written to `splits_file`; where it exists, it decides and nothing is drawn; a
    file that it names and that is not in the data is a problem.
    Raises UserError for a share outside 0 to 1, too few people, and a file that does not fit the data.
    """
    path = Path(splits_file)
    if path.exists():
        return _as_written(whole, path, problems or Problems())
    if not 0 < test_share < 1:
        raise UserError(f"test_share: {test_share} is no share: use a number between 0 and 1, such as 0.5")
    persons = np.asarray(whole["person_id"][:])
    people = np.unique(persons)
    test = round(test_share * len(people))
    if test < 1 or len(people) - test < 2:
        raise UserError(
            f"{len(people)} people, test_share {test_share}: too few for two to train on and one to test on"
        )
    chosen = np.random.default_rng(seed).permutation(people)[:test]
    in_test = np.isin(persons, chosen)
    query, gallery = query_gallery_parts(whole.select(np.flatnonzero(in_test)), seed=seed)
    made = DatasetDict(train=whole.select(np.flatnonzero(~in_test)), query=query, gallery=gallery)
    text = json.dumps({name: split["file_name"][:] for name, split in made.items()}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): give splits_file another path") from error
    return made


def split_where_whole(dataset: DatasetDict, splits_file: str | os.PathLike[str], **options) -> DatasetDict:
    """The data set itself, or where it is one unsplit part the parts of `make_splits`."""
    return make_splits(dataset[WHOLE], splits_file, **options) if list(dataset) == [WHOLE] else dataset


def _as_written(whole: Dataset, path: Path, problems: Problems) -> DatasetDict:
    """The parts that the file names."""
    rows = {name: row for row, name in enumerate(whole["file_name"][:])}
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        names = {str(split): [str(name) for name in of_split] for split, of_split in parts.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a file of parts ({error}): remove it to draw them anew") from error
    for name in (name for of_split in names.values() for name in of_split if name not in rows):
        problems.report(UserError(f"{path}: names {name!r}, which is not in the data: remove the file to draw anew"))
    return DatasetDict(
        {split: whole.select([rows[name] for name in of_split if name in rows]) for split, of_split in names.items()}
    )
