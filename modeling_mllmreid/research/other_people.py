"""A model against the colour histogram on another data set, with intervals over people."""

from typing import Any

from datasets import DatasetDict

from ..data.load import load_reid_dataset
from ..evaluation.protocol import embed_query_gallery, histogram_metrics, metrics_by_feature, same_person
from ..evaluation.report import difference_lines, format_table
from ..evaluation.run import people_intervals
from ..evaluation.statistics import compare
from ..model import MllmReIDModel, MllmReIDProcessor
from ..utils.errors import UserError

HISTOGRAM = "colour histogram"


def load_other_people(folder: str) -> DatasetDict:
    """Loads a folder in Market-1501 layout to test on.

    Args:
        folder (`str`): The folder; it needs no training images.

    Returns:
        `DatasetDict`: The splits, "query" and "gallery" among them.

    Raises:
        UserError: For another layout, and for queries of fewer than two people: an interval comes from their
            differences.
    """
    try:
        dataset = load_reid_dataset("market1501", data_dir=folder)
    except UserError as error:
        raise UserError(f"also_evaluate: {error}") from error
    people = len({*dataset["query"]["person_id"][:]})
    if people < 2:
        raise UserError(f"also_evaluate {folder}: has queries of {people} person: give queries of two or more")
    return dataset


def evaluate_other_people(
    model: MllmReIDModel, processor: MllmReIDProcessor, dataset: DatasetDict, folder: str
) -> dict[str, Any]:
    """Measures the test feature of a model and the colour histogram on the same queries; prints both.

    Args:
        model (`MllmReIDModel`): The model.
        processor (`MllmReIDProcessor`): Its processor.
        dataset (`DatasetDict`): The splits of `load_other_people`.
        folder (`str`): The folder, for the title.

    Returns:
        `dict[str, Any]`: Metrics and intervals by feature, and the difference of each metric with its interval.
    """
    query, gallery = dataset["query"], dataset["gallery"]
    feature, persons, rule = model.config.test_feature, query["person_id"][:], same_person(query, gallery)
    results = metrics_by_feature(*embed_query_gallery(model, processor, query, gallery), rule)
    results = {feature: results[feature], HISTOGRAM: histogram_metrics(query, gallery, rule)}
    intervals = {name: people_intervals(metrics, persons) for name, metrics in results.items()}
    differences = compare(results[feature], results[HISTOGRAM], persons)
    print(f"\n{folder}: {len(set(persons))} people")
    print(format_table(list(results.items()), intervals))
    print(f"{feature} less {HISTOGRAM}, same queries:\n{difference_lines(differences)}")
    return {
        "folder": folder,
        "test": {name: metrics.to_dict() for name, metrics in results.items()},
        "intervals": {name: {key: i.to_dict() for key, i in values.items()} for name, values in intervals.items()},
        "less_histogram": {name: difference.to_dict() for name, difference in differences.items()},
    }
