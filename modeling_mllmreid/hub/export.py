"""A model as it is published: full, thin or the vision form, without ID classifier, with card, notices and code."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, ProcessorMixin

from ..evaluation.report import weights_digest, write_json
from ..evaluation.threshold import THRESHOLD_FILE
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDVisionModel, MllmReIDVisionProcessor
from ..model.publishing import VERBATIM
from ..utils.errors import UserError
from ..utils.outputs import atomic_folder
from .card import licence_notice, read_card_data, write_card
from .publication import LOSS_PICTURE, REPORTS, form_files, published_json, published_report
from .training_settings import draw_loss_curves

Form = Literal["full", "thin", "vision"]


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
    Nothing in it shows a path of this machine. Two exports to one folder never mix.
    Raises UserError for a form that the model cannot take, a report that is none, a folder that is not empty, and where
    the disk refuses; nothing is left of it then.
    """
    with atomic_folder(folder) as aside:
        # Before the hours of a large model: what is wrong with a report stops it.
        reports = {} if source is None else published_reports(source, to)
        form, of_form = converted(model, processor, to)
        with form.without_classifier() if isinstance(form, MllmReIDModel) else nullcontext():
            form.save_pretrained(aside)
            parameters = sum(parameter.numel() for parameter in form.parameters())
        of_form.save_pretrained(aside)
        if onnx:
            from .onnx import export_onnx

            assert isinstance(form, MllmReIDVisionModel)  # the caller asked for this form
            export_onnx(form, aside / "model.onnx")
        for report, content in reports.items():
            write_json(aside / report, content)
        for written in form_files(aside):
            if written.endswith(".json") and written not in (*VERBATIM, *REPORTS):
                path = aside / written
                path.write_bytes(published_json(written, path.read_bytes(), where=str(path)) or b"")
        notice = licence_notice(form.config) if to == "full" else None
        if notice:
            (aside / "NOTICE").write_text(notice, encoding="utf-8")
        measured_on = reports["run.json"]["measured_on"] if reports else None
        metadata = read_card_data(aside, to, name, parameters=parameters, measured_on=measured_on)
        if metadata.log_history:
            try:
                draw_loss_curves(aside / LOSS_PICTURE, metadata.log_history)
                metadata.has_loss_picture = True
            except UserError:
                pass  # matplotlib is not installed: the card has the losses as a table
        write_card(aside, metadata)
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


def published_reports(source: Path, to: Form) -> dict[str, Any]:
    """Thresholds and reports of a checkpoint by file name, as an export of it holds them.

    run.json says whose they are: an export's reports are of the checkpoint that it was made from, and so are those of
    an export of it. Raises UserError for a report that is not what its name says.
    """
    found = {}
    for report in REPORTS:
        path = source / report
        content = published_report(report, path.read_bytes(), where=str(path)) if path.is_file() else None
        if content is not None:
            found[report] = content
    thresholds = found.get(THRESHOLD_FILE, {})
    found[THRESHOLD_FILE] = {name: row for name, row in thresholds.items() if to != "vision" or name == "vision"}
    run = found.get("run.json", {})
    found["run.json"] = {**run, "measured_on": run.get("measured_on") or weights_digest(source)}
    return found
