"""Tiny checkpoints of every form, their reports, an index and sidecars, made once and linked into every example."""

import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from native import write_native
from PIL import Image
from safetensors.torch import save_file

from modeling_mllmreid.commands import embed, evaluate
from modeling_mllmreid.data.captions import CaptionRecord, TextRecord, append_records, caption_keys
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.pair_fusion import PairFusion
from modeling_mllmreid.evaluation.threshold import Threshold, save_thresholds
from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel, MllmReIDVisionProcessor
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.retrieval.embeddings import weights_digest
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.loading import load_encoder

FORMS = ("full", "vision", "thin", "native")
SIZE = {"height": 64, "width": 32}


@cache
def disk() -> SimpleNamespace:
    """Folders: `people`, a checkpoint for each of FORMS, `index`; files: `captions`, `texts`."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-models-"))
    write_pedestrians(root / "people", train_identities=2, test_identities=3, images_per_camera=2, cameras=2)
    processor, llava = write_native(root / "native")
    torch.manual_seed(0)
    fields = {**SIZE, "image_prefix_ids": processor.image_prefix_ids}
    full = MllmReIDModel.from_mllm(llava, **fields)
    full.save_pretrained(root / "full")
    processor.save_pretrained(root / "full")
    MllmReIDVisionModel.from_reid_model(full).save_pretrained(root / "vision")
    MllmReIDVisionProcessor(processor.image_processor).save_pretrained(root / "vision")
    thin = MllmReIDModel.from_mllm_pretrained(root / "native", **fields)
    adapters = AdapterArguments(language_model="lora", tower="frozen", lora_rank=4)
    prepare_training(thin, adapters, backbone=str(root / "native"), revision=None, dtype=torch.float32)
    thin.save_pretrained(root / "thin")
    processor.save_pretrained(root / "thin")
    of_data = ["--dataset", "market1501", "--data_dir", str(root / "people")]
    evaluate.main(["--model", str(root / "full"), *of_data, "--output_dir", str(root / "evaluated")])
    for form in ("full", "thin", "vision"):
        write_reports(root / form)
    embed.main(["--model", str(root / "full"), "--images", str(root / "people/query"), "--output", str(root / "index")])
    write_sidecars(root)
    names = {name: root / name for name in (*FORMS, "people", "index")}
    return SimpleNamespace(root=root, captions=root / "captions.jsonl", texts=root / "texts.jsonl", **names)


def write_reports(folder: Path) -> None:
    """Every report that may lie next to the weights, as a training and the evaluate command write them."""
    row = {
        "distance": 0.5,
        "low": 0.4,
        "high": 0.6,
        "fpir": 0.1,
        "tpir": 0.5,
        "searches": 20,
        "people": 3,
        "gallery": 9,
    }
    fusion = PairFusion(1.0, -8.0, 0.5, 0.6, 0.4, 0.8, 20, 400, 20, 0.2, 0.02)
    save_thresholds(folder, {"llm": Threshold(**row), "vision": Threshold(**row, fusion=fusion)})
    of_weights = {"weights": weights_digest(folder)}
    metrics = {**json.loads((folder.parent / "evaluated/metrics.json").read_text()), **of_weights}
    run = {
        **of_weights,
        **{"base_model": "llava-hf/llava-1.5-7b-hf", "hardware": "a CPU", "seconds": 12.5, "sources": ["market1501"]},
        "data": {"train": {"images": 8, "persons": 2}},
        "texts": [{"model": "a", "licence": "llama2", "instruction": "b"}],
        "adapters": {"language_model": "lora", "tower": "full", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        "batches": {
            "flip": 0.5,
            "pad": 10,
            "erase": 0.5,
            "color_jitter": 0.2,
            "text_branch": True,
            "instruction": "common",
            "target": "caption",
        },
        "environment": {"torch": "2.13"},
    }
    log = [{"loss": 1.0 / step, "language": 0.5, "step": step, "epoch": step / 2} for step in range(1, 4)]
    arguments = ReIDTrainingArguments(output_dir="runs/a", use_cpu=True, learning_rates='{"vision": 1e-4}')
    reports = {
        "metrics.json": metrics,
        "run.json": run,
        "trainer_state.json": {"log_history": log, "global_step": 3},
        "training_args.json": json.loads(json.dumps(arguments.to_public_dict(), default=str)),
    }
    for name, content in reports.items():
        (folder / name).write_text(json.dumps(content))


def write_sidecars(root: Path) -> None:
    """Captions that a model wrote for the people's images, and continuations of their own captions."""
    dataset = load_reid_dataset("market1501", data_dir=root / "people", captions_file=root / "people/reid_raw.json")
    provenance = {"model": "m", "revision": None, "instruction": "i", "max_new_tokens": 4}
    keyed = [pair for row in caption_keys(dataset["train"], "train") for pair in row]
    append_records(
        root / "texts.jsonl",
        [TextRecord(*key, caption, "he walks", provenance, [7, 8], "a1") for key, caption in keyed],
    )
    names = dataset["train"]["file_name"][:]
    captions = [CaptionRecord("market1501", "train", name, 0, "a man", provenance) for name in names]
    append_records(root / "captions.jsonl", captions)


@cache
def embedding(form: str) -> np.ndarray:
    """The embedding by the unchanged checkpoint of `fuzz_image`."""
    return embedding_of(disk().root / form)


def embedding_of(folder: Path) -> np.ndarray:
    """The feature of `fuzz_image` by a checkpoint, as the embed command loads it."""
    model, processor = load_encoder(ModelArguments(str(folder)))
    with torch.inference_mode():
        return model.eval().encode_images(processor(images=[fuzz_image()])["pixel_values"]).float().numpy()


def fuzz_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8))


def copied(source: Path, target: Path) -> Path:
    """A folder whose large files are links: what changes one must replace it."""
    shutil.copytree(source, target, copy_function=_link_large)
    return target


def replace(path: Path, content: bytes) -> None:
    """Writes a new file in the place of one that may be a link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def replace_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The same for a file of tensors."""
    path.unlink(missing_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _link_large(source: str, target: str) -> None:
    if source.endswith((".safetensors", ".jpg", ".png")):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
