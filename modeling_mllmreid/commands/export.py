"""`export`: writes a checkpoint in a form for publishing without its ID classifier, or the native LLaVA inside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.licences import licence_of
from ..hub.export import form_of, write_export
from ..hub.native import Source, native_llava, write_native
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDProcessor
from ..options.arguments import ModelArguments
from ..options.data_arguments import LicenceArguments
from ..options.parser import parse
from ..training.loading import load_encoder
from ..utils.checkpoint_formats import ExportConfigFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.outputs import check_output_folder


@dataclass
class ExportArguments:
    """The form of the export, and its folder."""

    output: str = field(metadata={"help": "Folder for the export; it must be new or empty."})
    to: Literal["full", "thin", "vision", "native"] | None = field(
        default=None,
        metadata={
            "help": "full (all weights), thin (trained weights), vision (encoder and head) or native (the LLaVA "
            "inside, for transformers, without ReID heads). Default: the same form."
        },
    )
    onnx: bool = field(
        default=False, metadata={"help": "Also write model.onnx; vision form only, needs the extra onnx."}
    )
    backbone: str | None = field(
        default=None,
        metadata={"help": "Name on the Hub that a thin export records as its backbone."},
    )


def main(argv: list[str]) -> None:
    """Writes the export. The folder appears once it is complete."""
    model_args, args, licence_args = parse((ModelArguments, ExportArguments, LicenceArguments), argv, "export")
    output, source = Path(args.output), Path(model_args.model)
    check_output_folder(output, inputs=[source] if source.is_dir() else [])
    if source.is_dir():
        read_json(source / "config.json", ExportConfigFile, remedy="give a checkpoint's folder")
    model, processor = load_encoder(model_args)
    to = args.to or form_of(model)
    if args.onnx and to != "vision":
        raise UserError("onnx: is only written for the vision form: add --to vision")
    if args.backbone:
        if to != "thin":
            raise UserError(f"backbone: is only recorded in a thin export, and this one is {to}: leave it out")
        model.config.backbone = args.backbone
    licence = licence_args.licence or model.config.base_licence
    model.config.base_licence = licence or licence_of(model_args.model, revision=model_args.revision)
    if to == "native":
        return export_native(model, processor, model_args, output)
    options = {"source": source if source.is_dir() else None, "onnx": args.onnx}
    form = write_export(model, processor, output, to=to, name=output.name, **options)
    # The model in memory still has the ID classifier, which the export leaves out.
    count = sum(p.numel() for name, p in form.named_parameters() if ".classifier." not in name)
    print(f"{to}, {count:,} parameters: {output}")


def export_native(
    model: ImageEncoder, processor: ImageEncoderProcessor, model_args: ModelArguments, output: Path
) -> None:
    """Writes the LLaVA inside a model."""
    if not isinstance(model, MllmReIDModel) or not isinstance(processor, MllmReIDProcessor):
        raise UserError("to native: a vision form has no language model: give the checkpoint it was exported from")
    # Before the LoRA is merged, after which the model names no backbone.
    source = Source("LLaVA before the training", model.config.backbone or model_args.model, model.config.base_licence)
    trained_on = ", ".join(model.config.trained_on or []) or "no data"
    llava = native_llava(model, processor, model_args.torch_dtype)
    write_native(llava, output, sources=[source], text=f"\nA LLaVA that MLLMReID trained further on {trained_on}.")
    print(f"native, {sum(weight.numel() for weight in llava.mllm.parameters()):,} parameters: {output}")
