"""Exports a model for publication: full, thin or vision form, without ID classifier, with card, notices and code."""

import copy
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, ProcessorMixin

from ..evaluation.threshold import THRESHOLD_FILE
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDVisionModel, MllmReIDVisionProcessor
from ..model.publishing import VERBATIM
from ..retrieval.embeddings import weights_digest
from ..utils.errors import UserError
from ..utils.outputs import atomic_folder, write_json
from .card import licence_notice, read_card_data, write_card
from .publication import LOSS_PICTURE, REPORTS, form_files, published_json, published_report
from .training_settings import draw_loss_curves

Form = Literal["full", "thin", "vision"]


def form_of(model: ImageEncoder) -> Form:
    """Returns the form of a model."""
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
    """Writes a form of a model with its processor, reports and card. No file holds a path of this machine.

    The folder appears when it is complete, so two exports to one folder never mix.

    Args:
        model ([`MllmReIDModel`] or [`MllmReIDVisionModel`]):
            The model. Merging changes a thin model that becomes full or vision.
        processor ([`MllmReIDProcessor`] or [`MllmReIDVisionProcessor`]):
            Its processor.
        folder (`Path`):
            The new folder.
        to (`"full"`, `"thin"` or `"vision"`):
            The form.
        name (`str`):
            Name of the model on the card.
        source (`Path`, *optional*):
            The checkpoint's folder, with thresholds and reports. The card shows only reports of its weights.
        onnx (`bool`, *optional*, defaults to `False`):
            Whether to write `model.onnx` of a vision form too.

    Returns:
        `PreTrainedModel`: the model in that form.

    Raises:
        UserError: for a form that the model cannot take, an invalid report, a folder that is not empty, and an error
            of the disk. No folder is left.
    """
    with atomic_folder(folder) as temporary:
        # First, so that an invalid report stops the export before a large model takes hours.
        reports = {} if source is None else published_reports(source, to)
        form, form_processor = converted(model, processor, to)
        with form.without_classifier():
            form.save_pretrained(temporary)
            parameters = sum(parameter.numel() for parameter in form.parameters())
        form_processor.save_pretrained(temporary)
        if onnx:
            from .onnx import export_onnx

            assert isinstance(form, MllmReIDVisionModel)  # the caller asked for this form
            assert isinstance(form_processor, MllmReIDVisionProcessor)
            export_onnx(form, temporary / "model.onnx", form_processor)
        for report, content in reports.items():
            write_json(temporary / report, content)
        for written in form_files(temporary):
            if written.endswith(".json") and written not in (*VERBATIM, *REPORTS):
                path = temporary / written
                path.write_bytes(published_json(written, path.read_bytes(), where=str(path)) or b"")
        notice = licence_notice(form.config) if to == "full" else None
        if notice:
            (temporary / "NOTICE").write_text(notice, encoding="utf-8")
        measured_on = reports["run.json"]["measured_on"] if reports else None
        metadata = read_card_data(temporary, to, name, parameters=parameters, measured_on=measured_on)
        if metadata.log_history:
            try:
                draw_loss_curves(temporary / LOSS_PICTURE, metadata.log_history)
                metadata.has_loss_picture = True
            except UserError:
                pass  # without matplotlib the card shows the losses as a table only
        write_card(temporary, metadata)
    return form


def converted(model: ImageEncoder, processor: ImageEncoderProcessor, to: Form) -> tuple[ImageEncoder, ProcessorMixin]:
    """Returns the model and its processor in another form. Raises UserError if that is not possible.

    A LoRA on an encoder without a language model is merged into a copy, which needs no peft.
    """
    if isinstance(model, MllmReIDVisionModel) and to == "vision" and model.config.lora_modules is not None:
        return copy.deepcopy(model).merge_and_unload(), processor
    if form_of(model) == to:
        return model, processor
    if not isinstance(model, MllmReIDModel):
        raise UserError(f"to {to}: the model has no language model: give a checkpoint that has one, or leave it out")
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
    """Returns a checkpoint's thresholds and reports by file name, with the content that an export publishes.

    `measured_on` of run.json is the digest of the weights that the reports belong to. An export of an export keeps the
    digest of the first checkpoint.

    Raises:
        UserError: for an invalid report.
    """
    reports = {}
    for report in REPORTS:
        path = source / report
        content = published_report(report, path.read_bytes(), where=str(path)) if path.is_file() else None
        if content is not None:
            reports[report] = content
    thresholds = reports.get(THRESHOLD_FILE, {})
    reports[THRESHOLD_FILE] = {
        feature: values for feature, values in thresholds.items() if to != "vision" or feature == "vision"
    }
    run = reports.get("run.json", {})
    reports["run.json"] = {**run, "measured_on": run.get("measured_on") or weights_digest(source)}
    return reports
