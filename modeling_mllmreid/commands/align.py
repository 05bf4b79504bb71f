"""`align`: teaches the image tokens of a composed LLaVA the words of captions, before its language model learns."""

import os
from dataclasses import dataclass, field

import torch

from ..data.contract import image_sources
from ..data.images import check_images
from ..data.leakage import training_sources
from ..data.licences import licence_of
from ..data.load import load_reid_dataset
from ..hub.native import Source, native_llava, write_native
from ..model import MllmReIDModel, MllmReIDProcessor
from ..options.arguments import ModelArguments
from ..options.data_arguments import DataArguments, LicenceArguments
from ..options.parser import parse
from ..research.alignment import align_words
from ..training.loading import load_encoder, to_device
from ..utils.errors import UserError
from ..utils.outputs import check_output_folder
from ..utils.ranges import Count, Pixels, Positive, Seed


@dataclass
class AlignArguments:
    """The training, and the folder of the aligned LLaVA."""

    output: str = field(metadata={"help": "Folder for the LLaVA; it must be new or empty."})
    height: Pixels | None = field(default=None, metadata={"help": "Height of the resized crops in pixels."})
    width: Pixels | None = field(default=None, metadata={"help": "Width of the resized crops in pixels."})
    steps: Count = field(default=400, metadata={"help": "Number of training steps."})
    batch_size: Count = field(default=32, metadata={"help": "Images in a step."})
    learning_rate: Positive = field(default=1e-3, metadata={"help": "Peak learning rate of the projector."})
    tower_learning_rate: Positive = field(default=3e-5, metadata={"help": "Peak learning rate of the tower."})
    seed: Seed = field(default=0, metadata={"help": "Seed of the batches."})


def main(argv: list[str]) -> None:
    """Writes the aligned LLaVA. The folder appears once it is complete."""
    groups = (ModelArguments, DataArguments, LicenceArguments, AlignArguments)
    model_args, data_args, licence_args, args = parse(groups, argv, "align")
    check_output_folder(args.output, inputs=[model_args.model] if os.path.isdir(model_args.model) else [])
    if model_args.dtype_name != "float32":
        raise UserError(f"dtype {model_args.dtype}: trained weights are float32: leave it out")
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, notes=notes, **data_args.options())
    print("".join(f"{note}\n" for note in notes), end="")
    if "train" not in dataset:
        raise UserError(f"data set {data_args.dataset}: has no train split: give a data set with one")
    trained_on, _ = training_sources(data_args.dataset, dataset, targets=[], allow_overlap=False)
    train = dataset["train"]
    captions = train["caption"][:]
    train = train.select([image for image, texts in enumerate(captions) if texts])
    if not len(train):
        raise UserError(f"data set {data_args.dataset}: no training image has a caption: give --captions_file")
    size = {name: value for name in ("height", "width") if (value := getattr(args, name)) is not None}
    model, processor = load_encoder(model_args, size)
    if not isinstance(model, MllmReIDModel) or not isinstance(processor, MllmReIDProcessor) or not is_llava(model):
        raise UserError(f"model {model_args.model}: is not a LLaVA: give the folder that compose has written")
    sources = image_sources(train)
    check_images(sources)
    to_device(model)
    print(f"{len(train):,} training images with captions")
    torch.manual_seed(args.seed)  # for a tower with dropout
    chance, learned = align_words(
        model,
        processor,
        sources,
        train["caption"][:],
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        tower_learning_rate=args.tower_learning_rate,
        seed=args.seed,
    )
    print(f"words of the captions: {chance:.2f} nats an image from their shares alone, {learned:.2f} from the image")
    recorded = licence_args.licence or model.config.base_licence
    licence = recorded or licence_of(model_args.model, revision=model_args.revision)
    model.config.base_licence = licence
    model.config.trained_on = sorted({*(model.config.trained_on or []), *trained_on})
    text = f"\nA LLaVA whose image tokens MLLMReID aligned with the words of captions, on {', '.join(trained_on)}."
    llava = native_llava(model, processor, model_args.torch_dtype)
    source = Source("LLaVA before the alignment", model_args.model, licence)
    write_native(llava, args.output, sources=[source], text=text)
    print(f"aligned: {args.output}")


def is_llava(model: MllmReIDModel) -> bool:
    """Whether a model is a LLaVA: `compose` makes one, and `write_native` writes no other family."""
    return bool(model.config.mllm_config.model_type == "llava")
