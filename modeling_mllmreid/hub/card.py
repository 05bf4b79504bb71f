"""Renders the model card by card.md.jinja, from the reports in a checkpoint's folder alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import PreTrainedConfig

from ..data.licences import LLAMA2, LLAMA2_NOTICE, RENDERED, data_licence, licence_in_config
from ..data.published import PUBLISHED, has_published_counts
from ..model import MllmReIDConfig
from ..model.publishing import is_local
from ..retrieval.embeddings import weights_digest
from ..utils.checkpoint_formats import ExportConfigFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.markdown import Markdown, code, escape, in_python_string, plain
from ..utils.outputs import atomic_file
from ..utils.shipped import MODEL_CARDS
from .publication import published_report
from .training_settings import duration, loss_points, loss_table, settings

TEMPLATE = "card.md.jinja"
SNIPPET = """\
import torch
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
images = ["query.jpg", "gallery.jpg"]  # crops of one person each, of any size
with torch.inference_mode():
    embeddings = model.encode_images(processor(images=images)["pixel_values"])  # (2, D), float32, L2-normalised
print(embeddings @ embeddings.T)  # cosine similarities
"""
METRIC_TITLES = {"mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP"}
# Metrics of the test feature that the Hub's model index holds, and their types there.
INDEX_TYPES = {"mAP": "mAP", "rank1": "rank-1", "mINP": "mINP"}
NAME_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# Licences that the weights may have if all data are rendered by this package.
OPEN_LICENCES = ("apache-2.0", "mit")


@dataclass
class CardData:
    """The content of a model card.

    Args:
        form (`str`):
            "full", "thin" or "vision".
        name (`str`):
            Name of the repository or the folder.
        config (`dict`):
            Content of config.json.
        metrics, run, training_args (`dict`, *optional*):
            Content of these files; `None` if they are missing or belong to other weights.
        log_history (`list[dict]`):
            Log of trainer_state.json; empty without a loss.
        parameters (`int`):
            Number of parameters; 0 is not shown.
        weights_sha (`str`):
            Digest of the folder's weights.
        has_loss_picture (`bool`):
            Whether the folder has loss.png.
    """

    form: str
    name: str
    config: dict[str, Any]
    metrics: dict[str, Any] | None = None
    training_args: dict[str, Any] | None = None
    log_history: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] | None = None
    parameters: int = 0
    weights_sha: str = ""
    has_loss_picture: bool = False


def read_card_data(
    folder: str | Path, form: str, name: str, *, parameters: int = 0, measured_on: str | None = None
) -> CardData:
    """Reads the content of a card from the folder of a checkpoint or an export.

    Reports that belong to other weights, or that name no weights, are left out.

    Args:
        folder (`str` or `Path`):
            The folder.
        form (`str`):
            "full", "thin" or "vision".
        name (`str`):
            Name of the model on the card.
        parameters (`int`, *optional*, defaults to 0):
            Number of parameters.
        measured_on (`str`, *optional*):
            Digest of the checkpoint that an export comes from, which its reports belong to.

    Returns:
        [`CardData`]

    Raises:
        UserError: without a config.json, and for an invalid file.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", ExportConfigFile).model_dump(exclude_unset=True)
    own = weights_digest(folder)
    measured = own if measured_on is None else measured_on
    metrics, run = (_if_measured_on(_read(folder / report), measured) for report in ("metrics.json", "run.json"))
    history = (_read(folder / "trainer_state.json") or {}).get("log_history", [])
    return CardData(
        form=form,
        name=name,
        config=config,
        metrics=metrics,
        training_args=_read(folder / "training_args.json"),
        log_history=history if loss_points(history) else [],
        run=run,
        parameters=parameters,
        weights_sha=own,
        has_loss_picture=(folder / "loss.png").is_file(),
    )


def write_card(folder: str | Path, card: CardData) -> None:
    """Writes a card to README.md of a folder."""
    with atomic_file(Path(folder) / "README.md") as temporary:
        temporary.write_text(render_card(card), encoding="utf-8")


def render_card(card: CardData) -> str:
    """Renders a card. Text from reports is escaped: it is shown as it is and has no effect as Markdown or HTML.

    Args:
        card ([`CardData`]):
            The content.

    Returns:
        `str`: Markdown with YAML metadata at the start.

    Raises:
        UserError: if the Hub would read other metadata.
    """
    metadata = card_metadata(card)
    text = _environment().get_template(TEMPLATE).render(_template_variables(card, metadata))
    try:
        survives = ModelCard(text).data.to_dict() == metadata.to_dict()
    except ValueError:
        survives = False
    if not survives:
        raise UserError(f"model card of {plain(card.name)}: its metadata does not survive YAML: choose a plainer name")
    return text


def _template_variables(card: CardData, metadata: ModelCardData) -> dict[str, Any]:
    """Returns the variables of card.md.jinja."""
    results, run, metrics = result_lines(card), card.run or {}, card.metrics or {}
    trained_on, tested_on = card.config.get("trained_on") or [], metrics.get("tested_on") or []
    sources = {name.partition(":")[0] for name in trained_on}
    licence = licence_in_config(card.config)
    return {
        "card": card,
        "config": card.config,
        "feature": card.config.get("test_feature") or "not recorded",
        "metrics": card.metrics if results else None,
        "run": run,
        "metadata": Markdown(metadata.to_yaml()),
        "snippet": Markdown(SNIPPET.format(name=in_python_string(card.name))),
        "base": base_model(card),
        "licence": licence,
        "columns": list(METRIC_TITLES.values()),
        "results": results,
        "protocol": protocol(metrics) if results else "",
        "confidence": _confidence(metrics),
        "trained_on": trained_on,
        "trained_as": [_trained_as(card, name) for name in trained_on],
        "tested_as": _tested_as(card),
        "matched": bool(tested_on) and all(tested_on_published(card, source) for source in tested_on),
        "data_licences": _data_licences(card, sources, tested_on),
        "rendered": bool(sources) and sources <= set(RENDERED),
        "overlap": card.config.get("overlap") or [],
        "settings": settings(card.config, card.training_args, run, card.log_history),
        "duration": duration(run["seconds"]) if run.get("seconds") is not None else None,
        "losses": loss_table(card.log_history),
        "llama2": licence == LLAMA2,
        "clip": _vision_type(card.config).startswith("clip"),
        "encoder": _vision_type(card.config),
        # Checkpoints of version 0.1.0 have the class token's field, and were all exported.
        "own_encoder": not card.config.get("exported") and "class_token" not in card.config,
    }


def _data_licences(card: CardData, sources: set[str], tested_on: list[str]) -> dict[str, str]:
    """Returns the licences of the training sets, then of the other test sets, by name."""
    licences = {name: data_licence(name, trained_on_published(card, name)) for name in sorted(sources)}
    others = sorted({*tested_on} - sources)
    return licences | {name: data_licence(name, tested_on_published(card, name)) for name in others}


@cache
def _environment() -> Environment:
    """Returns the template environment, which escapes every value except those marked as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(MODEL_CARDS),
        undefined=StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = code
    environment.filters["cells"] = lambda values: _joined(" | ", values)
    environment.filters["listed"] = lambda values: _joined(", ", values)
    return environment


def _joined(separator: str, values: Iterable[Any]) -> Markdown:
    return Markdown(separator.join(map(escape, values)))


def card_metadata(card: CardData) -> ModelCardData:
    """Returns the card's YAML metadata. Results of people that were trained on by choice are left out."""
    names = sorted({name.partition(":")[0] for name in card.config.get("trained_on") or []})
    results, licence = indexed_results(card), licence_in_config(card.config)
    # The visual encoder alone contains no Llama.
    has_licence = licence == LLAMA2 and card.form != "vision"
    has_licence |= licence in OPEN_LICENCES and bool(names) and {*names} <= {*RENDERED}
    # Own data in a published data set's layout does not get its name.
    datasets = [name for name in names if name not in PUBLISHED or trained_on_published(card, name)]
    return ModelCardData(
        license=licence if has_licence else "other",
        license_name=None if has_licence else "see-licences-that-carry-over",
        license_link=None if has_licence else "README.md",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["person-re-identification", "mllmreid"],
        base_model=base_model(card),
        datasets=[name for name in datasets if re.fullmatch(r"[\w.-]+", name, re.ASCII)] or None,
        model_name=plain(card.name) if results else None,
        eval_results=results or None,
    )


def trained_on_published(card: CardData, source: str) -> bool | None:
    """Returns whether a training set had the published counts of images and people; None if not recorded."""
    run = card.run or {}
    known = run.get("published_counts")
    if known is None and run.get("sources") == [source] and source in PUBLISHED:
        splits = (run.get("data") or {}).items()
        counts = {split: {"samples": count["images"], "identities": count["persons"]} for split, count in splits}
        return has_published_counts(source, counts)
    return (known or {}).get(source)


def _trained_as(card: CardData, name: str) -> str:
    """Returns a training set's name, with a note if its counts are not those of the published set."""
    source = name.partition(":")[0]
    if source not in PUBLISHED or trained_on_published(card, source):
        return name
    differs = trained_on_published(card, source) is False
    return f"{name} ({'its layout, not' if differs else 'not known to be'} the published set)"


def tested_on_published(card: CardData, source: str) -> bool | None:
    """Returns whether a test set had the published counts of images; None if not recorded."""
    metrics = card.metrics or {}
    known = metrics.get("published_counts")
    if known is None and metrics.get("tested_on") == [source] and source in PUBLISHED:
        counts = {split: {"samples": metrics[f"{split}_images"]} for split in ("query", "gallery")}
        return has_published_counts(source, counts)
    return (known or {}).get(source)


def _tested_as(card: CardData) -> str:
    """Returns the names of the test sets; a published set's name only if the counts are its own."""
    names = []
    for source in (card.metrics or {}).get("tested_on") or ["unknown"]:
        published = tested_on_published(card, source)
        if source not in PUBLISHED or published:
            names.append(source)
        else:
            names.append(f"images in the layout of {source}, not known to be the published set")
    return " + ".join(names)


def indexed_results(card: CardData) -> list[EvalResult]:
    """Returns the test feature's metrics for the Hub's model index, or none if test people were trained on."""
    metrics, feature = card.metrics, card.config.get("test_feature")
    results = _form_metrics(card).get(str(feature))
    if metrics is None or results is None or metrics.get("overlap"):
        return []
    return [
        EvalResult(
            task_type="image-retrieval",
            task_name="Person re-identification",
            # Not the set's name: the reader accepts any images in its layout.
            dataset_type="person-crops",
            dataset_name=plain(
                f"{_tested_as(card)}, {metrics['query_images']} query and {metrics['gallery_images']} gallery images"
            ),
            metric_type=metric_type,
            metric_name=f"{METRIC_TITLES[key]}, percent",
            metric_value=round(100 * results[key], 2),
        )
        for key, metric_type in INDEX_TYPES.items()
        if results.get(key) is not None
    ]


def result_lines(card: CardData) -> list[list[str]]:
    """Returns the result table's lines: a name, then each metric in percent with its interval, or "-"."""
    intervals = (card.metrics or {}).get("intervals") or {}
    return [
        [name, *(_cell(metrics.get(key), intervals.get(name, {}).get(key)) for key in METRIC_TITLES)]
        for name, metrics in _form_metrics(card).items()
    ]


def protocol(metrics: Mapping[str, Any]) -> Markdown:
    """Describes in words how the results of a metrics.json were measured."""
    excluded = [escape(column.removesuffix("_id")) for column in metrics.get("exclude") or []]
    rule = (
        f"Gallery images that show the query's person with the query's {' or '.join(excluded)} are dropped."
        if excluded
        else "No gallery image is dropped."
    )
    words = ["Each query image ranks all gallery images by cosine distance.", rule]
    words += ["At equal distances the wrong image counts as nearer."]
    if metrics.get("quantize"):
        bits = escape(metrics["quantize"].removesuffix("bit"))
        words.append(f"The language model had {bits}-bit weights; with other weights the results differ.")
    if metrics.get("flip_test"):
        words.append("Each feature is the mean of the image's and its mirror image's.")
    if metrics.get("pool_tracks"):
        words.append("Images of one track are pooled into one feature.")
    return Markdown(" ".join(words))


def licence_notice(config: Mapping[str, Any] | PreTrainedConfig) -> str | None:
    """Returns the NOTICE that a full export of a base under Llama 2's licence must have; None for other exports."""
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    full = fields.get("model_type") == MllmReIDConfig.model_type and not fields.get("backbone")
    return LLAMA2_NOTICE if full and licence_in_config(fields) == LLAMA2 else None


def base_model(card: CardData) -> str | None:
    """Returns the name on the Hub of a thin checkpoint's backbone or of the native model that training started from."""
    name = card.config.get("backbone") or (card.run or {}).get("base_model") or ""
    return name if NAME_ON_THE_HUB.fullmatch(name) and not is_local(name) else None


def _form_metrics(card: CardData) -> dict[str, dict[str, Any]]:
    """Returns the metrics of the features that this form has; a vision form has only the "vision" feature."""
    metrics = (card.metrics or {}).get("metrics") or {}
    if card.form != "vision":
        return metrics
    return {name: values for name, values in metrics.items() if name.partition(",")[0] in ("vision", "histogram")}


def _confidence(metrics: Mapping[str, Any]) -> float | None:
    """Returns the confidence level of the intervals, in percent."""
    features = (metrics.get("intervals") or {}).values()
    levels = [interval["confidence"] for intervals in features for interval in intervals.values()]
    return 100 * levels[0] if levels else None


def _cell(share: float | None, interval: Mapping[str, float] | None) -> Markdown:
    if share is None:
        return Markdown("-")
    bounds = f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" if interval else ""
    return Markdown(f"{100 * share:.1f}{bounds}")


def _vision_type(config: Mapping[str, Any]) -> str:
    nested = config.get("vision_config") or (config.get("mllm_config") or {}).get("vision_config") or {}
    return str(nested.get("model_type", ""))


def _if_measured_on(report: dict[str, Any] | None, digest: str) -> dict[str, Any] | None:
    return report if report and digest and report.get("weights") == digest else None


def _read(path: Path) -> dict[str, Any] | None:
    return published_report(path.name, path.read_bytes(), where=str(path)) if path.is_file() else None
