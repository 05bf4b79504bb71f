"""`caption`: writes captions for images that have none, with a multimodal LLM."""

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
from ..training.loading import load_text_model, revision_option, to_device
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
    batch_size: Count = field(default=16, metadata={"help": "Captions that are generated at once."})
    do_sample: bool = field(
        default=False, metadata={"help": "Sample the captions instead of taking the most likely one."}
    )
    temperature: Positive = field(
        default=1.0, metadata={"help": "Sampling temperature: captions vary more above 1 and less below 1."}
    )
    seed: Seed = field(default=0, metadata={"help": "Seed of the prompts and the sampling."})


def main(argv: list[str]) -> None:
    """Writes the missing captions; under `accelerate launch` each process writes a share of them."""
    groups = (ModelArguments, DataArguments, LicenceArguments, CaptionArguments)
    model_args, data_args, licence_args, args = parse(groups, argv, "caption")
    dataset = load_reid_dataset(data_args.dataset, **data_args.options())
    absent = [split for split in args.splits if split not in dataset]
    if absent:
        raise UserError(f"data set {data_args.dataset}: has no split {absent[0]}: give one of {', '.join(dataset)}")
    name = model_args.model
    try:
        with processor_files(name):
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **revision_option(model_args))
            # A model needs a chat template that takes images.
            content = [{"type": "image"}, {"type": "text", "text": STANDARD_INSTRUCTION}]
            processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model {name}: not loadable as an image-text-to-text model ({reason})") from error
    mllm = load_text_model(AutoModelForImageTextToText, model_args)
    to_device(mllm)
    settings = asdict(args)
    written = write_captions(
        mllm,
        processor,
        {split: dataset[split] for split in settings.pop("splits")},
        settings.pop("output"),
        prompts=[STANDARD_INSTRUCTION] if settings.pop("prompts") == "one" else STANDARD_POOL,
        # An absolute path: a relative one looks like a name on the Hub.
        model_name=os.path.abspath(name) if os.path.isdir(name) else name,
        revision=getattr(mllm.config, "_commit_hash", None) or model_args.revision,
        licence=licence_args.licence or licence_of(name, revision=model_args.revision),
        inputs=[path for path in (data_args.captions_file, data_args.splits_file) if path],
        **settings,
    )
    print(f"{written:,} captions written: {args.output}; read them with --captions_file")
