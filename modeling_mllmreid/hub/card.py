"""The model card: what a run measured and was told, rendered by model_cards/card.md.jinja; no number from elsewhere."""

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
from ..evaluation.report import weights_digest
from ..model import MllmReIDConfig
from ..model.publishing import is_local
from ..utils.errors import UserError
from ..utils.formats import ExportConfigFile
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
SHOWN = {"mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP"}
# Of these the Hub's index holds the test feature's.
INDEXED = {"mAP": "mAP", "rank1": "rank-1", "mINP": "mINP"}
NAME_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# What the terms of the data do not keep from being the weights' licence, where all data were rendered here.
OPEN_LICENCES = ("apache-2.0", "mit")


@dataclass
class CardData:
    """What the card says, and nothing else.

    form: "full", "thin" or "vision". name: the repository's or the folder's. config: as in config.json. metrics, run,
    training_args: those files' contents, None where they are absent or of other weights. log_history: of
    trainer_state.json, empty without a loss. weights_sha: digest of the folder's own weights.
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
    """The card that lie in a checkpoint's or an export's folder.

    measured_on: digest of the checkpoint that an export was made from; its reports speak of that one. Reports of other
    weights, or of weights that they do not name, are left out. Raises UserError where there is no config.json, and for
    a file that is not what its name says.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", ExportConfigFile).model_dump(exclude_unset=True)
    own = weights_digest(folder)
    wanted = own if measured_on is None else measured_on
    metrics, run = (_of_weights(_read(folder / report), wanted) for report in ("metrics.json", "run.json"))
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
    """Writes README.md."""
    with atomic_file(Path(folder) / "README.md") as aside:
        aside.write_text(render_card(card), encoding="utf-8")


def render_card(card: CardData) -> str:
    """The card as Markdown, its metadata in front; every text in the card is shown as it reads, and does nothing.

    Raises UserError where the Hub would read other metadata.
    """
    metadata = card_metadata(card)
    rows, run = result_rows(card), card.run or {}
    trained_on = card.config.get("trained_on") or []
    tested_on = (card.metrics or {}).get("tested_on") or []
    sources = {name.partition(":")[0] for name in trained_on}
    licences = {name: data_licence(name, trained_on_published(card, name)) for name in sorted(sources)}
    licences |= {name: data_licence(name, tested_on_published(card, name)) for name in sorted({*tested_on} - sources)}
    text = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            card=card,
            config=card.config,
            feature=card.config.get("test_feature") or "not recorded",
            metrics=card.metrics if rows else None,
            run=run,
            metadata=Markdown(metadata.to_yaml()),
            snippet=Markdown(SNIPPET.format(name=in_python_string(card.name))),
            base=base_model(card),
            licence=licence_in_config(card.config),
            columns=list(SHOWN.values()),
            rows=rows,
            protocol=protocol(card.metrics) if card.metrics and rows else "",
            confidence=_confidence(card.metrics or {}),
            trained_on=trained_on,
            trained_as=[_trained_as(card, name) for name in trained_on],
            tested_as=_tested_as(card),
            matched=bool(tested_on) and all(tested_on_published(card, source) for source in tested_on),
            data_licences=licences,
            rendered=bool(sources) and sources <= set(RENDERED),
            overlap=card.config.get("overlap") or [],
            settings=settings(card.config, card.training_args, run, card.log_history),
            duration=duration(run["seconds"]) if run.get("seconds") is not None else None,
            losses=loss_table(card.log_history),
            llama2=licence_in_config(card.config) == LLAMA2,
            clip=_vision_type(card.config).startswith("clip"),
        )
    )
    try:
        survives = ModelCard(text).data.to_dict() == metadata.to_dict()
    except ValueError:
        survives = False
    if not survives:
        raise UserError(f"model card of {plain(card.name)}: its metadata does not survive YAML: choose a plainer name")
    return text


@cache
def _environment() -> Environment:
    """Where whatever the template shows goes through `escape`: only what is marked as Markdown stays as it is."""
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
    """The card's front matter; results only of people that were not knowingly trained on, in percent."""
    names = sorted({name.partition(":")[0] for name in card.config.get("trained_on") or []})
    results, licence = indexed_results(card), licence_in_config(card.config)
    # The visual encoder alone is no part of a Llama.
    named = licence == LLAMA2 and card.form != "vision"
    named |= licence in OPEN_LICENCES and bool(names) and {*names} <= {*RENDERED}
    # A published set's name is given to what was trained on it, not to what lies in its layout.
    shown = [name for name in names if name not in PUBLISHED or trained_on_published(card, name)]
    return ModelCardData(
        license=licence if named else "other",
        license_name=None if named else "see-licences-that-carry-over",
        license_link=None if named else "README.md",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["person-re-identification", "mllmreid"],
        base_model=base_model(card),
        datasets=[name for name in shown if re.fullmatch(r"[\w.-]+", name, re.ASCII)] or None,
        model_name=plain(card.name) if results else None,
        eval_results=results or None,
    )


def trained_on_published(card: CardData, source: str) -> bool | None:
    """Whether a set that was trained on was the published one by its counts; None where that was not recorded."""
    run = card.run or {}
    known = run.get("published_counts")
    if known is None and run.get("sources") == [source] and source in PUBLISHED:
        parts = (run.get("data") or {}).items()
        counts = {part: {"samples": of["images"], "identities": of["persons"]} for part, of in parts}
        return has_published_counts(source, counts)
    return (known or {}).get(source)


def _trained_as(card: CardData, name: str) -> str:
    """What was trained on: with a doubt where its counts do not say that it is the set of that name."""
    source = name.partition(":")[0]
    if source not in PUBLISHED or trained_on_published(card, source):
        return name
    known = trained_on_published(card, source) is False
    return f"{name} ({'its layout, not' if known else 'not known to be'} the published set)"


def tested_on_published(card: CardData, source: str) -> bool | None:
    """Whether a set that was tested on was the published one by its counts; None where that was not recorded."""
    metrics = card.metrics or {}
    known = metrics.get("published_counts")
    if known is None and metrics.get("tested_on") == [source] and source in PUBLISHED:
        counts = {part: {"samples": metrics[f"{part}_images"]} for part in ("query", "gallery")}
        return has_published_counts(source, counts)
    return (known or {}).get(source)


def _tested_as(card: CardData) -> str:
    """What was tested on: a published set's name only where its counts say so."""
    named = []
    for source in (card.metrics or {}).get("tested_on") or ["unknown"]:
        published = tested_on_published(card, source)
        if source not in PUBLISHED or published:
            named.append(source)
        else:
            named.append(f"images in the layout of {source}, not known to be the published set")
    return " + ".join(named)


def indexed_results(card: CardData) -> list[EvalResult]:
    """The test feature's metrics for the Hub's model index; none where tested people were trained on."""
    metrics, feature = card.metrics, card.config.get("test_feature")
    row = next((row for name, row in _shown_metrics(card).items() if name == feature), None)
    if metrics is None or row is None or metrics.get("overlap"):
        return []
    return [
        EvalResult(
            task_type="image-retrieval",
            task_name="Person re-identification",
            # Not the set's name alone: the reader gives it to whatever lies in that layout.
            dataset_type="person-crops",
            dataset_name=plain(
                f"{_tested_as(card)}, {metrics['query_images']} query and {metrics['gallery_images']} gallery images"
            ),
            metric_type=kind,
            metric_name=f"{SHOWN[key]}, percent",
            metric_value=round(100 * row[key], 2),
        )
        for key, kind in INDEXED.items()
        if row.get(key) is not None
    ]


def result_rows(card: CardData) -> list[list[str]]:
    """Cells for each result: its name, then each metric in percent with its interval; "-" where there is none."""
    intervals = (card.metrics or {}).get("intervals") or {}
    return [
        [name, *(_cell(row.get(key), intervals.get(name, {}).get(key)) for key in SHOWN)]
        for name, row in _shown_metrics(card).items()
    ]


def protocol(metrics: Mapping[str, Any]) -> Markdown:
    """How the results were measured, in words."""
    excluded = [escape(column.removesuffix("_id")) for column in metrics.get("exclude") or []]
    rule = (
        f"Gallery images that show the query's person with the query's {' or '.join(excluded)} are dropped."
        if excluded
        else "No gallery image is dropped."
    )
    words = ["Each query image ranks all gallery images by cosine distance.", rule]
    words += ["Of equal distances the wrong image counts as nearer."]
    if metrics.get("quantize"):
        bits = escape(metrics["quantize"].removesuffix("bit"))
        words.append(f"The language model was held in {bits} bits; loaded in another form it gives other results.")
    if metrics.get("flip_test"):
        words.append("Each feature is the mean of the image's and its mirror image's.")
    if metrics.get("pool_tracks"):
        words.append("Images of one track are pooled into one feature.")
    return Markdown(" ".join(words))


def licence_notice(config: Mapping[str, Any] | PreTrainedConfig) -> str | None:
    """The text of the NOTICE file that a full export of a base under Llama 2's licence must carry; None for others."""
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    full = fields.get("model_type") == MllmReIDConfig.model_type and not fields.get("backbone")
    return LLAMA2_NOTICE if full and licence_in_config(fields) == LLAMA2 else None


def base_model(card: CardData) -> str | None:
    """The base's name on the Hub, where one is known: a thin checkpoint's backbone, or what its training began with."""
    name = card.config.get("backbone") or (card.run or {}).get("base_model") or ""
    return name if NAME_ON_THE_HUB.fullmatch(name) and not is_local(name) else None


def _shown_metrics(card: CardData) -> dict[str, dict[str, Any]]:
    """The rows of metrics.json that this form can give: a vision form has one feature, whatever was measured beside."""
    rows = (card.metrics or {}).get("metrics") or {}
    if card.form != "vision":
        return rows
    return {name: row for name, row in rows.items() if name.partition(",")[0] in ("vision", "histogram")}


def _confidence(metrics: Mapping[str, Any]) -> float | None:
    """The share that the intervals were made for, in percent."""
    shares = [i["confidence"] for row in (metrics.get("intervals") or {}).values() for i in row.values()]
    return 100 * shares[0] if shares else None


def _cell(share: float | None, interval: Mapping[str, float] | None) -> Markdown:
    if share is None:
        return Markdown("-")
    of = f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" if interval else ""
    return Markdown(f"{100 * share:.1f}{of}")


def _vision_type(config: Mapping[str, Any]) -> str:
    nested = config.get("vision_config") or (config.get("mllm_config") or {}).get("vision_config") or {}
    return str(nested.get("model_type", ""))


def _of_weights(report: dict[str, Any] | None, digest: str) -> dict[str, Any] | None:
    return report if report and digest and report.get("weights") == digest else None


def _read(path: Path) -> dict[str, Any] | None:
    return published_report(path.name, path.read_bytes(), where=str(path)) if path.is_file() else None
