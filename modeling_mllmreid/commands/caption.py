"""`caption`: writes captions for images that have none, with a multimodal LLM."""

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..data.licences import licence_of
from ..data.load import load_reid_dataset
from ..model.backbones import FAMILIES
from ..options.arguments import ModelArguments
from ..options.data_arguments import DataArguments, LicenceArguments
from ..options.endpoint_arguments import EndpointArguments
from ..options.parser import parse
from ..text.captioning import caption_side, write_captions
from ..text.instructions import STANDARD_INSTRUCTION, STANDARD_POOL
from ..training.loading import load_config, load_model, model_commit, to_device
from ..training.model_kinds import model_type
from ..utils.errors import UserError
from ..utils.ranges import AtMostMillions, Count, Positive, Seed


@dataclass
class CaptionArguments:
    """How captions are written, and the file they are written to."""

    output: str = field(
        default="captions.jsonl", metadata={"help": "File for the captions; an interrupted run continues it."}
    )
    splits: list[str] = field(default_factory=lambda: ["train"], metadata={"help": "Splits whose images get captions."})
    prompts: Literal["one", "pool"] = field(
        default="pool",
        metadata={"help": "One prompt for all captions, or a prompt drawn from a pool for each caption."},
    )
    captions_per_image: AtMostMillions = field(default=2, metadata={"help": "Captions per image."})
    max_new_tokens: Count = field(default=64, metadata={"help": "Most tokens of a caption."})
    batch_size: Count = field(default=16, metadata={"help": "Captions in a batch of a model that is loaded here."})
    do_sample: bool = field(
        default=False, metadata={"help": "Sample the captions instead of taking the most likely one."}
    )
    temperature: Positive = field(
        default=1.0, metadata={"help": "Sampling temperature: captions vary more above 1 and less below 1."}
    )
    seed: Seed = field(default=0, metadata={"help": "Seed of the prompts and the sampling."})


def main(argv: list[str]) -> None:
    """Writes the missing captions; under `accelerate launch` each process writes a share of them."""
    groups = (ModelArguments, EndpointArguments, DataArguments, LicenceArguments, CaptionArguments)
    model_args, endpoint_args, data_args, licence_args, args = parse(groups, argv, "caption")
    dataset = load_reid_dataset(data_args.dataset, **data_args.options())
    absent = [split for split in args.splits if split not in dataset]
    if absent:
        raise UserError(f"data set {data_args.dataset}: has no split {absent[0]}: give one of {', '.join(dataset)}")
    name = model_args.model
    # An engine may serve models of other families: nothing of the model is read here.
    model: Any = endpoint_args.connect(model_args)
    revision, processor = model_args.revision, None
    if model is None:
        if model_type(model_args) not in FAMILIES:
            raise UserError(f"model {name}: is fine-tuned for ReID: give the native model that it is based on")
        side = caption_side(load_config(model_args, {}).backbone_description)
        model, processor = load_model(model_args, {"height": side, "width": side})
        to_device(model)
        revision = model_commit(model_args) or revision
    settings = asdict(args)
    written = write_captions(
        model,
        processor,
        {split: dataset[split] for split in settings.pop("splits")},
        settings.pop("output"),
        prompts=[STANDARD_INSTRUCTION] if settings.pop("prompts") == "one" else STANDARD_POOL,
        # An absolute path: a relative one looks like a name on the Hub.
        model_name=os.path.abspath(name) if os.path.isdir(name) else name,
        revision=revision,
        licence=licence_args.licence or licence_of(name, revision=model_args.revision),
        inputs=[path for path in (data_args.captions_file, data_args.splits_file) if path],
        **settings,
    )
    print(f"{written:,} captions written: {args.output}; read them with --captions_file")
