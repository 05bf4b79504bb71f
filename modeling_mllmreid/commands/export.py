"""`export`: a checkpoint in the form that is published: whole, or the vision form; never with the ID classifier."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, ProcessorMixin

from ..errors import UserError
from ..evaluation.threshold import load_thresholds, save_thresholds
from ..model import MllmReIDVisionModel, MllmReIDVisionProcessor
from .arguments import ModelArguments
from .loading import load_model
from .options import parse


@dataclass
class ExportArguments:
    """What is written, and where to."""

    output: str = field(metadata={"help": "Folder for the export, which must not exist."})
    to: Literal["full", "vision"] = field(
        default="full", metadata={"help": "The whole model, or visual encoder and head alone."}
    )


def main(argv: list[str]) -> None:
    """Writes the export; the folder appears when it is whole."""
    model_args, args = parse((ModelArguments, ExportArguments), argv, "export")
    output = Path(args.output)
    if output.exists():
        raise UserError(f"output {output}: exists already: remove it or give another")
    model, processor = load_model(model_args)
    # The rows of the ID classifier are templates of the training people.
    model.set_num_identities(0)
    form: PreTrainedModel = model
    of_form: ProcessorMixin = processor
    if args.to == "vision":
        form, of_form = MllmReIDVisionModel.from_reid_model(model), MllmReIDVisionProcessor(processor.image_processor)
    aside = output.with_name(f".{output.name}.part")
    try:
        form.save_pretrained(aside)
        of_form.save_pretrained(aside)
        # Chosen on val with these weights: they hold for the export too.
        thresholds = load_thresholds(model_args.model, model_args.revision)
        kept = {name: value for name, value in thresholds.items() if args.to == "full" or name == "vision"}
        save_thresholds(str(aside), kept)
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    count = sum(parameter.numel() for parameter in form.parameters())
    print(f"{args.to}, {count:,} parameters: {output}")
