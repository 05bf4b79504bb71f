"""`continuations`: the frozen language model continues every training caption; `train` reads the result."""

import os
from dataclasses import asdict, dataclass, field
from typing import Literal

from transformers import AutoModelForImageTextToText

from ..data.licences import licence_of
from ..data.load import load_reid_dataset
from ..model.backbones import FAMILIES
from ..options.arguments import ModelArguments
from ..options.data_arguments import DataArguments, LicenceArguments
from ..options.endpoint_arguments import EndpointArguments
from ..options.parser import parse
from ..text.continuations import write_continuations
from ..text.instructions import instruction_texts
from ..training.loading import load_native_processor, load_text_model, to_device
from ..training.model_kinds import model_type
from ..utils.errors import UserError
from ..utils.ranges import Count, Positive, Seed


@dataclass
class ContinuationArguments:
    """How continuations are generated, and the file they are written to."""

    output: str = field(
        default="texts.jsonl", metadata={"help": "File for the continuations; an interrupted run continues it."}
    )
    instruction: Literal["common", "standard"] = field(
        default="common", metadata={"help": "The Common Instruction, or a standard person-description prompt."}
    )
    max_new_tokens: Count = field(default=32, metadata={"help": "Most tokens of a continuation."})
    batch_size: Count = field(default=64, metadata={"help": "Captions in a batch of a model that is loaded here."})
    do_sample: bool = field(
        default=False, metadata={"help": "Sample the continuations instead of taking the most likely one."}
    )
    temperature: Positive = field(
        default=1.0, metadata={"help": "Sampling temperature: texts vary more above 1 and less below 1."}
    )
    seed: Seed = field(default=0, metadata={"help": "Seed of the sampling."})


def main(argv: list[str]) -> None:
    """Writes a continuation for every training caption that has none yet.

    Captions of test people are left out: a model must not be trained on them.
    """
    groups = (ModelArguments, EndpointArguments, DataArguments, LicenceArguments, ContinuationArguments)
    model_args, endpoint_args, data_args, licence_args, args = parse(groups, argv, "continuations")
    dataset = load_reid_dataset(data_args.dataset, **data_args.options())
    if "train" not in dataset:
        raise UserError(f"data set {data_args.dataset}: has no train split: give a data set with one")
    if not any(dataset["train"]["caption"][:]):
        raise UserError(f"data set {data_args.dataset}: no training image has a caption: give --captions_file")
    name = model_args.model
    if model_type(model_args) not in FAMILIES:
        raise UserError(f"model {name}: is fine-tuned for ReID: give the native model that it is based on")
    processor = load_native_processor(model_args)
    mllm, revision = endpoint_args.connect(model_args), model_args.revision
    if mllm is None:
        mllm = load_text_model(AutoModelForImageTextToText, model_args)
        to_device(mllm)
        # The commit, so that the continuations can be reproduced after the branch has moved.
        revision = getattr(mllm.config, "_commit_hash", None) or revision
    settings = asdict(args)
    written = write_continuations(
        mllm,
        processor,
        {"train": dataset["train"]},
        settings.pop("output"),
        instruction=instruction_texts(settings.pop("instruction"))[0],
        # An absolute path: a relative one looks like a name on the Hub.
        model_name=os.path.abspath(name) if os.path.isdir(name) else name,
        licence=licence_args.licence or licence_of(name, revision=model_args.revision),
        revision=revision,
        inputs=[path for path in (data_args.captions_file, data_args.splits_file) if path],
        **settings,
    )
    print(f"{written:,} continuations written: {args.output}")
