"""`caption`: a multimodal LLM describes a data set's images that have no captions, for `continuations` and `train`."""

import os
from dataclasses import asdict, dataclass, field
from typing import Literal

from transformers import AutoModelForImageTextToText, AutoProcessor

from ..data.licences import licence_of
from ..data.load import load_reid_dataset
from ..model.crops import processor_files
from ..options.arguments import DataArguments, LicenceArguments, ModelArguments
from ..options.parser import parse
from ..text.captioning import write_captions
from ..text.instructions import STANDARD_INSTRUCTION, STANDARD_POOL
from ..training.loading import hub_place, load_writer, to_device
from ..utils.errors import UserError
from ..utils.ranges import AtMostMillions, Count, Positive, Seed


@dataclass
class CaptionArguments:
    """How the captions are written, and where they go."""

    output: str = field(default="captions.jsonl", metadata={"help": "File for the captions; a cut-off run goes on."})
    splits: list[str] = field(default_factory=lambda: ["train"], metadata={"help": "Parts whose images are described."})
    prompts: Literal["one", "pool"] = field(
        default="pool", metadata={"help": "One prompt for all, or one drawn from a pool for each caption."}
    )
    captions_per_image: AtMostMillions = field(default=2, metadata={"help": "Captions of each image."})
    max_new_tokens: Count = field(default=64, metadata={"help": "A caption's tokens at most."})
    batch_size: Count = field(default=16, metadata={"help": "Captions written at once."})
    do_sample: bool = field(default=False, metadata={"help": "Draw the captions at random, not the likeliest."})
    temperature: Positive = field(default=1.0, metadata={"help": "Of the draws: above 1 more varied, below 1 less."})
    seed: Seed = field(default=0, metadata={"help": "Of the prompts and the draws."})


def main(argv: list[str]) -> None:
    """Writes the captions that are missing; under `accelerate launch` each process writes a share."""
    groups = (ModelArguments, DataArguments, LicenceArguments, CaptionArguments)
    model_args, data_args, licence_args, args = parse(groups, argv, "caption")
    dataset = load_reid_dataset(data_args.dataset, **data_args.options())
    absent = [split for split in args.splits if split not in dataset]
    if absent:
        raise UserError(f"data set {data_args.dataset}: has no part {absent[0]}: give some of {', '.join(dataset)}")
    name = model_args.model
    try:
        with processor_files(name):
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **hub_place(model_args))
            # A model without a chat template, or whose template takes no images, writes no captions.
            content = [{"type": "image"}, {"type": "text", "text": STANDARD_INSTRUCTION}]
            processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model {name}: not loadable as an image-text-to-text model ({reason})") from error
    mllm = load_writer(AutoModelForImageTextToText, model_args)
    to_device(mllm)
    settings = asdict(args)
    written = write_captions(
        mllm,
        processor,
        {split: dataset[split] for split in settings.pop("splits")},
        settings.pop("output"),
        prompts=[STANDARD_INSTRUCTION] if settings.pop("prompts") == "one" else STANDARD_POOL,
        # A path from the root: a relative one reads like a name on the Hub.
        model_name=os.path.abspath(name) if os.path.isdir(name) else name,
        revision=getattr(mllm.config, "_commit_hash", None) or model_args.revision,
        licence=licence_args.licence or licence_of(name, revision=model_args.revision),
        inputs=[path for path in (data_args.captions_file, data_args.splits_file) if path],
        **settings,
    )
    print(f"{written:,} captions written: {args.output}; read them with --captions_file")
