"""The steps of the demo: pedestrians, pretraining, continuations, training, evaluation, reload."""

import copy
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, AutoProcessor, LlavaForConditionalGeneration

from ..data.captions import read_records
from ..data.load import load_reid_dataset
from ..evaluation.protocol import (
    draw_queries,
    embed_query_gallery,
    evenly_spaced,
    histogram_metrics,
    metrics_by_feature,
    same_person,
)
from ..evaluation.report import format_table
from ..model import MllmReIDConfig, MllmReIDModel, MllmReIDProcessor
from ..model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from ..options.arguments import MethodArguments
from ..retrieval.ranking import rank_gallery
from ..synthetic.people.attributes import Crowd
from ..synthetic.people.captions import attribute_words
from ..synthetic.worlds import PEDESTRIANS
from ..synthetic.write import write_pedestrians
from ..text.continuations import kept_attribute_share, write_continuations
from ..text.generation import generate_texts
from ..training.adapters import AdapterArguments
from ..training.arguments import ReIDTrainingArguments
from ..training.batch_arguments import BatchArguments
from ..training.record import describe_devices, write_record
from ..training.run import save_thresholds_on_val, train_reid
from ..training.trainer import QueryGallery, ReIDTrainer
from ..utils.errors import UserError
from ..utils.outputs import check_output_folder, write_json
from ..utils.ranges import Count, Range, Several, Threads
from .language_gain import image_helps
from .other_people import HISTOGRAM, evaluate_other_people, load_other_people
from .tiny_llava import TinyArguments, build_tiny, pretrain_tiny

# Random weights and rendered people are under the licence of this project.
OWN_MODEL, OWN_LICENCE = "the demo's own language model", "apache-2.0"


@dataclass
class DemoArguments:
    """Sizes of the rendered world."""

    train_identities: Count = field(default=600, metadata={"help": "People to train on, including those of val."})
    test_identities: Several = field(default=60, metadata={"help": "People to test on; none of them is in training."})
    images_per_camera: Several = field(default=3, metadata={"help": "Images of each person from each camera."})
    cameras: Several = field(default=4, metadata={"help": "Cameras that each person passes."})
    scenes: Several = field(default=60, metadata={"help": "Scenes of the world, each with one camera."})
    look_alikes: Annotated[int, Range(at_least=0, at_most=4)] = field(
        default=0, metadata={"help": "Of every five people, so many wear almost the clothes of the one before."}
    )
    also_evaluate: str | None = field(
        default=None, metadata={"help": "Folder in Market-1501 layout with other people to test on, with intervals."}
    )
    threads: Threads = field(default=1, metadata={"help": "Threads of torch; more threads slow a tiny model down."})

    def rendered(self) -> dict[str, Any]:
        """The keyword arguments of `write_pedestrians`."""
        names = ("train_identities", "test_identities", "images_per_camera", "cameras", "scenes")
        sizes = {name: getattr(self, name) for name in names}
        return {**sizes, "crowd": Crowd(copies=self.look_alikes), "named": PEDESTRIANS}


class DemoOptions(NamedTuple):
    """The options of the demo, one dataclass for each concern."""

    world: DemoArguments
    tiny: TinyArguments
    method: MethodArguments
    batches: BatchArguments
    training: ReIDTrainingArguments

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.training.output_dir))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a crop in pixels."""
        return self.method.height or 128, self.method.width or 64


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Renders people, pretrains a tiny LLaVA, trains it for ReID and evaluates it; prints each step.

    Args:
        options (`DemoOptions`): The sizes and settings. The results go to `options.folder`.

    Returns:
        `dict[str, Any]`: The report that `metrics.json` in the folder holds.

    Raises:
        UserError: For an output folder that is not empty and for sizes that do not fit together.
    """
    started, folder = time.monotonic(), options.folder
    check_output_folder(folder)
    other_folder = options.world.also_evaluate
    others = None if other_folder is None else load_other_people(other_folder)
    torch.set_num_threads(options.world.threads)
    torch.manual_seed(options.training.seed)
    processor, mllm = build_base(options)

    print_step("1. Pedestrians")
    write_pedestrians(folder / "pedestrians", **options.world.rendered(), seed=options.training.seed)

    print_step("2. A tiny LLaVA learns to continue captions of other people; a frozen copy is the teacher")
    teacher, pretraining_loss = pretrain_teacher(mllm, processor, options)

    print_step("3. The teacher continues every training caption, once")
    dataset = continue_captions(teacher, processor, options)
    kept = kept_share(dataset["train"])
    print(f"share of the captions' attribute words that the continuations keep: {kept:.1%}")

    print_step("4. Training: Common Instruction on both branches, DirectReID on the language model and visual encoder")
    model = build_student(teacher, processor, options)
    untrained = copy.deepcopy(model).eval()
    training_started = time.monotonic()
    trained = train_reid(model, processor, dataset, options.batches, options.training)
    trainer = trained.trainer
    seconds = time.monotonic() - training_started

    print_step("5. Evaluation on people outside the training set, across cameras")
    on_val = choose_feature(trainer, trained.val)
    report = evaluate_demo(trainer.model, processor, dataset, untrained, folder) | {"val": on_val}
    if others is not None:
        report["also_evaluated"] = evaluate_other_people(trainer.model, processor, others, str(other_folder))
    write_training_record(dataset, options, seconds)
    report["language"] = language_report(trainer, processor, teacher, dataset, options.batches)
    report |= {
        "kept_attribute_words": kept,
        "pretraining_loss": pretraining_loss,
        "training": trainer.state.log_history,
    }

    print_step("6. The checkpoint, loaded by the auto classes")
    difference = reload_difference(trainer, processor, dataset["query"], folder)
    print(f"AutoModel.from_pretrained gives the same embeddings, largest difference {difference:.1e}")
    report |= {"reload_difference": difference, "seconds": round(time.monotonic() - started, 1)}
    report["settings"] = settings_as_json(options)
    write_json(folder / "metrics.json", report)
    return report


def print_step(title: str) -> None:
    """Prints the title of a step."""
    print(f"\n{title}", flush=True)


def build_base(options: DemoOptions) -> tuple[MllmReIDProcessor, LlavaForConditionalGeneration]:
    """Builds the processor and the untrained LLaVA. Raises UserError for sizes that do not fit together."""
    height, width = options.size
    try:
        # The words of the question join the vocabulary only where it is asked: other vocabularies are other models.
        words = (PAIR_QUESTION, *PAIR_ANSWERS) if options.method.pair_weight else ()
        processor, mllm = build_tiny(
            options.tiny, height=height, width=width, seed=options.training.seed, instructions=words
        )
        fields = {**options.method.given(), "height": height, "width": width}
        # The configuration checks the sizes before minutes of work depend on them.
        MllmReIDConfig(mllm_config=mllm.config, image_prefix_ids=processor.image_prefix_ids, **fields)
    except ValueError as error:
        raise UserError(f"demo: {error}") from error
    return processor, mllm


def pretrain_teacher(
    mllm: LlavaForConditionalGeneration, processor: MllmReIDProcessor, options: DemoOptions
) -> tuple[LlavaForConditionalGeneration, float]:
    """Returns a pretrained and frozen copy of the LLaVA, and the last loss of its pretraining in nats per token."""
    teacher = copy.deepcopy(mllm)
    target_tokens = options.batches.max_target_tokens
    loss = pretrain_tiny(teacher, processor, options.tiny, target_tokens=target_tokens)["language"]
    teacher.requires_grad_(False)
    print(f"loss at the end of the pretraining: {loss:.3f} nats per token")
    return teacher, loss


def continue_captions(
    teacher: LlavaForConditionalGeneration, processor: MllmReIDProcessor, options: DemoOptions
) -> DatasetDict:
    """Writes a continuation of every training caption; returns the data set with its texts."""
    data_dir, texts = options.folder / "pedestrians", options.folder / "texts.jsonl"
    source: dict[str, Any] = {"data_dir": data_dir, "captions_file": str(data_dir / "reid_raw.json")}
    write_continuations(
        teacher,
        processor,
        {"train": load_reid_dataset("market1501", **source)["train"]},
        texts,
        instruction=processor.instruction,
        model_name=OWN_MODEL,
        revision=None,
        licence=OWN_LICENCE,
        max_new_tokens=options.batches.max_target_tokens,
        batch_size=128,
    )
    return load_reid_dataset("market1501", texts=texts, **source)


def kept_share(split: Dataset) -> float:
    """Mean share of a caption's attribute words that its continuation keeps."""
    pairs = [
        pair
        for captions, continuations in zip(split["caption"][:], split["continuation"][:], strict=True)
        for pair in zip(captions, continuations, strict=True)
    ]
    captions, continuations = zip(*pairs, strict=True)
    return kept_attribute_share(captions, continuations, attribute_words)


def build_student(
    teacher: LlavaForConditionalGeneration, processor: MllmReIDProcessor, options: DemoOptions
) -> MllmReIDModel:
    """Builds the ReID model from a copy of the pretrained LLaVA, as a real run starts from LLaVA."""
    size = {"height": processor.height, "width": processor.width}
    fields = {**options.method.given(), **size, "base_licence": OWN_LICENCE}
    model: MllmReIDModel = MllmReIDModel.from_mllm(copy.deepcopy(teacher).requires_grad_(True), **fields)
    model.config.image_prefix_ids = processor.image_prefix_ids
    return model


def choose_feature(trainer: ReIDTrainer, val: QueryGallery | None) -> dict[str, float]:
    """Makes the best feature on val the test feature of the saved model; returns the mAP of each on val."""
    measured = trainer.evaluate()
    on_val = {name: measured[f"eval_{name}_mAP"] for name in ("llm", "vision", "concat")}
    trainer.model.config.test_feature = max(on_val, key=on_val.__getitem__)
    trainer.save_model()
    # The fusion with pair scores is that of the test feature.
    save_thresholds_on_val(trainer, val)
    chosen = trainer.model.config.test_feature
    print(f"test feature: {chosen!r}, the best on val (mAP {on_val[chosen]:.1%})")
    return on_val


def evaluate_demo(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    dataset: DatasetDict,
    untrained: MllmReIDModel,
    folder: Path,
) -> dict[str, Any]:
    """Prints and returns the table, draws the sheet of the test feature."""
    query, gallery, chosen = dataset["query"], dataset["gallery"], model.config.test_feature
    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery)
    rule = same_person(query, gallery)
    metrics = metrics_by_feature(query_features, gallery_features, rule)
    untrained_features = embed_query_gallery(untrained, processor, query, gallery)
    metrics[f"untrained {chosen}"] = metrics_by_feature(*untrained_features, rule)[chosen]
    metrics[HISTOGRAM] = histogram_metrics(query, gallery, rule)
    draw_queries(
        folder / "sheet.png",
        rank_gallery(query_features[chosen], gallery_features[chosen], 10, same_person=rule),
        *(evenly_spaced(len(query)), query, gallery),
        title=f"Rendered pedestrians never seen in training, feature {chosen!r}",
    )
    print(format_table(list(metrics.items())))
    return {
        "chosen_feature": chosen,
        "test": {name: feature_metrics.to_dict() for name, feature_metrics in metrics.items()},
        "test_identities": len(set(query["person_id"][:])),
    }


def write_training_record(dataset: DatasetDict, options: DemoOptions, seconds: float) -> None:
    """Writes `run.json` next to the checkpoint; a model card reads it."""
    write_record(
        options.folder,
        dataset,
        base_model=OWN_MODEL,
        adapters=AdapterArguments(),
        batches=options.batches,
        language=True,
        texts=[record.provenance for record in read_records(options.folder / "texts.jsonl")],
        seconds=seconds,
        devices=describe_devices(options.training),
    )


def language_report(
    trainer: ReIDTrainer,
    processor: MllmReIDProcessor,
    teacher: LlavaForConditionalGeneration,
    dataset: DatasetDict,
    batch_args: BatchArguments,
    images: int = 240,
) -> dict[str, float]:
    """Measures a continuation's loss given its own image and given another person's, on at most `images` queries."""
    query = dataset["query"].select(range(min(images, len(dataset["query"]))))
    captions = [captions[0] for captions in query["caption"][:]]
    prompts = [processor.text_prompt_ids(caption) for caption in captions]
    length = batch_args.max_target_tokens
    written = generate_texts(teacher, processor.tokenizer, prompts, max_new_tokens=length, batch_size=120)
    continuations = [text for text, _ in written]
    own, other = image_helps(trainer.model, processor, query, continuations, max_target_tokens=length)
    print(
        f"loss of a continuation on people outside the training set, nats per token: {own:.3f} given its own image, "
        f"{other:.3f} given another person's"
    )
    return {"own_image": own, "other_image": other}


def reload_difference(trainer: ReIDTrainer, processor: MllmReIDProcessor, query: Dataset, folder: Path) -> float:
    """Largest difference between embeddings of the model in memory and of its reloaded checkpoint."""
    images = [str(folder / "pedestrians" / name) for name in query["file_name"][:8]]
    loaded = (
        AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval().to(trainer.model.device)
    )
    loaded_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    with torch.inference_mode():
        expected = trainer.model.eval().encode_images(processor(images=images)["pixel_values"])
        actual = loaded.encode_images(loaded_processor(images=images)["pixel_values"])
    return float((expected - actual).abs().max())


def settings_as_json(options: DemoOptions) -> dict[str, Any]:
    """The settings of the run, for `metrics.json`."""
    return {
        "demo": asdict(options.world),
        "tiny": asdict(options.tiny),
        "method": options.method.given(),
        "batches": asdict(options.batches),
    }
