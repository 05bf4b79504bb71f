"""The people whom a model was trained on, as far as its checkpoint shows."""

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedConfig

from ..data.contract import join_names
from ..data.leakage import overlaps
from ..data.load import OWN_DATA_READERS
from ..data.seen_images import people_seen
from ..data.splits import MIN_TRAIN_IDENTITIES, split_validation
from ..model import ImageEncoderProcessor
from ..utils.checkpoint_formats import TrainingArgsFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.report_formats import RunFile
from .batch_arguments import BatchArguments
from .batches import TrainDataset
from .checkpointing import TRAINING_ARGUMENTS_FILE
from .resume import identities_digest


def refuse_test_people(config: PreTrainedConfig, split: Dataset) -> None:
    """Raises UserError if the model was trained on test people of the data sets of a split, by their names."""
    trained_on: list[str] = config.trained_on or []
    # All own data has the name of its reader, which identifies no people.
    if shared := overlaps(trained_on, set(split.unique("source")) - OWN_DATA_READERS.keys()):
        raise UserError(f"people: the model has seen some of them ({'; '.join(shared)}): give other people")


def refuse_train_people(
    config: PreTrainedConfig, split: Dataset, folder: Path, processor: ImageEncoderProcessor
) -> None:
    """Raises UserError if the model was trained on the train split of a data set.

    It is known by the name of a published data set. Own data is known by digests of its images in `run.json`, or by
    that of the training identities, which an export does not have.

    Args:
        config (`PreTrainedConfig`): The model's configuration.
        split (`Dataset`): The train split.
        folder (`Path`): The checkpoint, whose records name the people that were moved to val.
        processor (`MllmReIDProcessor` or `MllmReIDVisionProcessor`): The model's processor.

    Raises:
        UserError: The model was trained on these people.
    """
    refuse_test_people(config, split)
    names = {name.partition(":")[0] for name in config.trained_on or []} - OWN_DATA_READERS.keys()
    if seen := sorted(names & set(split.unique("source"))):
        raise UserError(
            f"people train: the model was trained on the train split of {', '.join(seen)}: give other people; read "
            "others that are in its layout as folders or table"
        )
    record = folder / "run.json"
    if record.is_file() and (people := people_seen({"train": split}, read_json(record, RunFile).people)):
        count = f"{len(people):,} of these people ({join_names(people)})"
        raise UserError(f"people train: the model was trained on {count}: give other people")
    if config.identities_digest is None:
        return
    for trained in _possible_training_splits(split, folder):
        samples = TrainDataset(trained, processor, BatchArguments(), seed=0, language=False)
        if identities_digest(samples) == config.identities_digest:
            raise UserError("people train: the model was trained on these people: give other people")


def _possible_training_splits(split: Dataset, folder: Path) -> Iterator[Dataset]:
    """Yields a train split, and what remained of it if the training in a folder moved people to val."""
    yield split
    run, arguments = folder / "run.json", folder / TRAINING_ARGUMENTS_FILE
    if not run.is_file() or not arguments.is_file():
        return
    count = (read_json(run, RunFile).batches or {}).get("val_identities")
    if isinstance(count, int) and 0 < count <= len(split.unique("person_id")) - MIN_TRAIN_IDENTITIES:
        seed = read_json(arguments, TrainingArgsFile).seed
        yield split_validation(split, val_identities=count, seed=0 if seed is None else seed)[0]
