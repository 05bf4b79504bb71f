"""The demo's steps, in order: pedestrians, language lesson, continuations, training, evaluation, reload."""

import copy
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModel, AutoProcessor

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
from ..evaluation.report import format_table, write_json
from ..model import MllmReIDConfig, MllmReIDModel, MllmReIDProcessor
from ..options.arguments import MethodArguments
from ..options.parser import parse
from ..research.language_gain import image_helps
from ..research.tiny_llava import TinyArguments, build_tiny, pretrain_tiny
from ..retrieval.ranking import rank_gallery
from ..synthetic.captions import attribute_words
from ..synthetic.worlds import PEDESTRIANS
from ..synthetic.write import write_pedestrians
from ..text.continuations import kept_attribute_share, write_continuations
from ..text.generation import generate_texts
from ..training.adapters import AdapterArguments
from ..training.arguments import BatchArguments, ReIDTrainingArguments
from ..training.run import describe_devices, train_reid, write_record
from ..training.trainer import ReIDTrainer
from ..utils.errors import UserError
from ..utils.outputs import check_output_folder
from ..utils.ranges import Count, Several, Threads
from ..utils.shipped import CONFIGS

# What is made here, out of random weights and rendered people, is under the licence of this project.
OWN_MODEL, OWN_LICENCE = "the demo's own language model", "apache-2.0"


@dataclass
class DemoArguments:
    """Sizes of the rendered world."""

    train_identities: Count = field(default=100, metadata={"help": "People to train on, val's among them."})
    test_identities: Several = field(default=60, metadata={"help": "People to test on, none of them trained on."})
    images_per_camera: Several = field(default=5, metadata={"help": "Images of each person from each camera."})
    cameras: Several = field(default=4, metadata={"help": "Cameras."})
    threads: Threads = field(default=1, metadata={"help": "Threads of torch: on a tiny model more of them are slower."})


def main(argv: list[str]) -> None:
    """Renders, teaches, trains and evaluates; every step says what it measured and where its results lie."""
    if not argv or argv[0].startswith("--"):
        argv = [str(CONFIGS / "demo.yaml"), *argv]
    groups = (DemoArguments, TinyArguments, MethodArguments, BatchArguments, ReIDTrainingArguments)
    args, tiny_args, method_args, batch_args, training_args = parse(groups, argv, "demo")
    started, folder = time.monotonic(), Path(training_args.output_dir)
    check_output_folder(folder)
    torch.set_num_threads(args.threads)
    torch.manual_seed(training_args.seed)
    height, width = method_args.height or 128, method_args.width or 64
    try:
        processor, mllm = build_tiny(tiny_args, height=height, width=width, seed=training_args.seed)
        fields = {**method_args.given(), "height": height, "width": width}
        MllmReIDConfig(mllm_config=mllm.config, image_prefix_ids=processor.image_prefix_ids, **fields)
    except ValueError as error:
        # Before the minutes of work that these sizes would end.
        raise UserError(f"demo: {error}") from error

    _say("1. Pedestrians")
    world = ("train_identities", "test_identities", "images_per_camera", "cameras")
    data_dir = folder / "pedestrians"
    sizes = {name: getattr(args, name) for name in world}
    write_pedestrians(data_dir, seed=training_args.seed, named=PEDESTRIANS, **sizes)

    _say("2. A tiny LLaVA learns to continue captions of other people; a frozen copy is the teacher")
    teacher = copy.deepcopy(mllm)
    lesson_loss = pretrain_tiny(teacher, processor, tiny_args, target_tokens=batch_args.max_target_tokens)["language"]
    teacher.requires_grad_(False)
    print(f"loss at the end of the lesson: {lesson_loss:.3f} nats a token")

    _say("3. The teacher continues every training caption, once")
    source: dict[str, Any] = {"data_dir": data_dir, "captions_file": str(data_dir / "reid_raw.json")}
    texts = folder / "texts.jsonl"
    write_continuations(
        teacher,
        processor,
        {"train": load_reid_dataset("market1501", **source)["train"]},
        texts,
        instruction=processor.instruction,
        model_name=OWN_MODEL,
        revision=None,
        licence=OWN_LICENCE,
        max_new_tokens=batch_args.max_target_tokens,
        batch_size=128,
    )
    dataset = load_reid_dataset("market1501", texts=texts, **source)
    kept = kept_share(dataset["train"])
    print(f"share of the captions' attribute words that the continuations keep: {kept:.1%}")

    _say("4. Training: Common Instruction on both branches, DirectReID on the language model and the visual encoder")
    # The student starts from the taught language model, as a real run starts from LLaVA.
    fields = {**method_args.given(), "height": processor.height, "width": processor.width, "base_licence": OWN_LICENCE}
    model = MllmReIDModel.from_mllm(copy.deepcopy(teacher).requires_grad_(True), **fields)
    model.config.image_prefix_ids = processor.image_prefix_ids
    untrained = copy.deepcopy(model).eval()
    training_started = time.monotonic()
    trained = train_reid(model, processor, dataset, batch_args, training_args)
    seconds = time.monotonic() - training_started

    _say("5. Evaluation on people never seen in training, across cameras")
    report = evaluate_demo(trained.trainer, processor, dataset, untrained, folder)
    write_record(
        folder,
        dataset,
        base_model=OWN_MODEL,
        adapters=AdapterArguments(),
        batches=batch_args,
        texts=[record.provenance for record in read_records(texts)],
        seconds=seconds,
        devices=describe_devices(training_args),
    )
    report["language"] = language_report(trained.trainer, processor, teacher, dataset, batch_args)
    report |= {"kept_attribute_words": kept, "lesson_loss": lesson_loss, "training": trained.trainer.state.log_history}

    _say("6. The checkpoint, as others load it")
    difference = reload_difference(trained.trainer, processor, dataset["query"], folder)
    report |= {"reload_difference": difference, "seconds": round(time.monotonic() - started, 1)}
    report["settings"] = {
        "demo": asdict(args),
        "tiny": asdict(tiny_args),
        "method": method_args.given(),
        "batches": asdict(batch_args),
    }
    write_json(folder / "metrics.json", report)
    print(f"AutoModel.from_pretrained gives the same embeddings, largest difference {difference:.1e}")
    print(f"\ncheckpoint:   {folder}\nranked sheet: {folder / 'sheet.png'}\nmetrics:      {folder / 'metrics.json'}")
    print(f"time:         {report['seconds']:.0f} s")


def _say(step: str) -> None:
    print(f"\n{step}", flush=True)


def kept_share(split: Dataset) -> float:
    """Mean share of a caption's attribute words that its continuation keeps."""
    pairs = [
        pair
        for captions, continuations in zip(split["caption"][:], split["continuation"][:], strict=True)
        for pair in zip(captions, continuations, strict=True)
    ]
    captions, continuations = zip(*pairs, strict=True)
    return kept_attribute_share(captions, continuations, attribute_words)


def evaluate_demo(
    trainer: ReIDTrainer, processor: MllmReIDProcessor, dataset: DatasetDict, untrained: MllmReIDModel, folder: Path
) -> dict[str, Any]:
    """Chooses the test feature on val, prints and returns the table, draws the sheet of the chosen feature."""
    model, query, gallery = trainer.model, dataset["query"], dataset["gallery"]
    on_val = trainer.evaluate()
    chosen = max(("llm", "vision", "concat"), key=lambda name: on_val[f"eval_{name}_mAP"])
    model.config.test_feature = chosen
    trainer.save_model()

    query_features, gallery_features = embed_query_gallery(model, processor, query, gallery)
    rule = same_person(query, gallery)
    rows = metrics_by_feature(query_features, gallery_features, rule)
    before = embed_query_gallery(untrained, processor, query, gallery)
    rows[f"untrained {chosen}"] = metrics_by_feature(*before, rule)[chosen]
    rows["colour histogram"] = histogram_metrics(query, gallery, rule)
    draw_queries(
        folder / "sheet.png",
        rank_gallery(query_features[chosen], gallery_features[chosen], 10, same_person=rule),
        *(evenly_spaced(len(query)), query, gallery),
        title=f"Rendered pedestrians never seen in training, feature {chosen!r}",
    )
    print(format_table(list(rows.items())))
    print(f"chosen on val: {chosen!r} (val mAP {on_val[f'eval_{chosen}_mAP']:.3f})")
    return {
        "chosen_feature": chosen,
        "val": {name: on_val[f"eval_{name}_mAP"] for name in ("llm", "vision", "concat")},
        "test": {name: row.to_dict() for name, row in rows.items()},
        "test_identities": len(set(query["person_id"][:])),
    }


def language_report(
    trainer: ReIDTrainer,
    processor: MllmReIDProcessor,
    teacher: Any,
    dataset: DatasetDict,
    batch_args: BatchArguments,
    images: int = 240,
) -> dict[str, float]:
    """On people never seen: is the loss of a continuation lower given its own image than given another person's?"""
    query = dataset["query"].select(range(min(images, len(dataset["query"]))))
    captions = [captions[0] for captions in query["caption"][:]]
    prompts = [processor.text_prompt_ids(caption) for caption in captions]
    length = batch_args.max_target_tokens
    continuations = generate_texts(teacher, processor.tokenizer, prompts, max_new_tokens=length, batch_size=120)
    own, other = image_helps(trainer.model, processor, query, continuations, max_target_tokens=length)
    print(
        f"loss of a continuation on people never seen, nats a token: {own:.3f} given its own image, "
        f"{other:.3f} given another person's"
    )
    return {"own_image": own, "other_image": other}


def reload_difference(trainer: ReIDTrainer, processor: MllmReIDProcessor, query: Dataset, folder: Path) -> float:
    """Largest difference between the embeddings of the model in memory and of its checkpoint by the auto classes."""
    images = [str(folder / "pedestrians" / name) for name in query["file_name"][:8]]
    loaded = (
        AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval().to(trainer.model.device)
    )
    loaded_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    with torch.inference_mode():
        expected = trainer.model.eval().encode_images(processor(images=images)["pixel_values"])
        got = loaded.encode_images(loaded_processor(images=images)["pixel_values"])
    return float((expected - got).abs().max())
