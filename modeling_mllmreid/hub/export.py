"""A model as it is published: full, thin or the vision form, without ID classifier, with card, notices and code."""

import errno
import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, ProcessorMixin

from ..errors import UserError
from ..evaluation.report import write_json
from ..evaluation.threshold import load_thresholds, save_thresholds
from ..evaluation.weights import weights_digest
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDVisionModel, MllmReIDVisionProcessor
from .card import licence_notice, read_facts, write_card
from .loss_curves import draw_loss_curves

Form = Literal["full", "thin", "vision"]
# What a run measured and was told; the card is made of them.
REPORTS = ("metrics.json", "run.json", "training_args.json", "trainer_state.json")


def form_of(model: ImageEncoder) -> Form:
    """Which form a model is of."""
    if isinstance(model, MllmReIDVisionModel):
        return "vision"
    return "full" if model.config.backbone is None else "thin"


def write_export(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    folder: Path,
    *,
    to: Form,
    name: str,
    source: Path | None = None,
    onnx: bool = False,
) -> PreTrainedModel:
    """Writes the form `to` of a model with its processor and card; returns the model in that form.

    A thin model becomes full or vision by merging, which changes it. name: what the card calls it. source: the
    checkpoint's folder, with thresholds and reports; the card shows only those of its weights. onnx: `model.onnx`
    beside a vision form. The folder appears when it is whole.
    Raises UserError for a form that the model cannot take, a folder that exists, and a full disk.
    """
    if folder.exists():
        raise UserError(f"output {folder}: exists already: remove it or give another")
    form, of_form = converted(model, processor, to)
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with form.without_classifier() if isinstance(form, MllmReIDModel) else nullcontext():
            form.save_pretrained(aside)
            parameters = sum(parameter.numel() for parameter in form.parameters())
        of_form.save_pretrained(aside)
        if onnx:
            from .onnx import export_onnx

            assert isinstance(form, MllmReIDVisionModel)  # the caller asked for this form
            export_onnx(form, aside / "model.onnx")
        measured_on = None if source is None else copy_reports(source, aside, to)
        notice = licence_notice(form.config) if to == "full" else None
        if notice:
            (aside / "NOTICE").write_text(notice, encoding="utf-8")
        facts = read_facts(aside, to, name, parameters=parameters, measured_on=measured_on)
        if facts.log_history:
            try:
                draw_loss_curves(aside / "loss.png", facts.log_history)
                facts.has_loss_picture = True
            except UserError:
                pass  # matplotlib is not installed: the card has the losses as a table
        write_card(aside, facts)
        aside.rename(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise UserError(f"output {folder}: no space left on the disk: free some, the model is as it was") from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return form


def converted(
    model: ImageEncoder, processor: ImageEncoderProcessor, to: Form
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model and its processor in another form. Raises UserError where that is not possible."""
    if form_of(model) == to:
        return model, processor
    if not isinstance(model, MllmReIDModel):
        raise UserError("to: a vision form has no language model: give the checkpoint it was exported from")
    if to == "thin":
        raise UserError(
            "to thin: this checkpoint holds every weight and names no backbone: only training with language_model lora "
            "or frozen makes thin ones"
        )
    try:
        model.merge_and_unload()
    except ValueError as error:
        raise UserError(f"to {to}: {error}") from error
    if to == "full":
        return model, processor
    return MllmReIDVisionModel.from_reid_model(model), MllmReIDVisionProcessor(processor.image_processor)


def copy_reports(source: Path, target: Path, to: Form) -> str:
    """Copies thresholds and reports of a checkpoint, without paths of this machine; returns its weights' digest."""
    kept = {name: row for name, row in load_thresholds(str(source)).items() if to != "vision" or name == "vision"}
    save_thresholds(str(target), kept)
    for report in REPORTS:
        if (source / report).is_file():
            content = json.loads((source / report).read_text(encoding="utf-8"))
            if report == "trainer_state.json":
                content = {"log_history": content["log_history"]}
            write_json(target / report, without_paths(content))
    # An export's reports are of the checkpoint that it was made from, and so are those of an export of it.
    record = json.loads((target / "run.json").read_text(encoding="utf-8")) if (target / "run.json").is_file() else {}
    measured_on = record.get("measured_on") or weights_digest(source)
    write_json(target / "run.json", {**record, "measured_on": measured_on})
    return measured_on


def without_paths(value: Any) -> Any:
    """The same report with every absolute path cut to its last name."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and re.match(r"^(/|~|[A-Za-z]:\\)", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
