"""Runs the real training on a small rendered data set."""

import copy
from functools import cache
from pathlib import Path

import torch

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.flat.captions import sample_descriptions
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.run import train_reid


@cache
def tiny_processor_and_llava(*words: str):
    """A processor, whose tokenizer knows these words too, and a LLaVA of one block each, for crops of 64 x 32."""
    texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
    texts += words
    processor = build_processor(texts, height=64, width=32, patch_size=16)
    return processor, build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)


def world_of(people: Path):
    """The data set that `write_pedestrians` wrote, with its captions."""
    return load_reid_dataset("market1501", data_dir=people, captions_file=str(people / "reid_raw.json"))


def train_tiny(
    folder: Path,
    dataset,
    output="run",
    *,
    batch=None,
    model=None,
    half=False,
    adapters=None,
    start=None,
    words=(),
    **arguments,
):
    """Trains a new tiny model in `folder / output`; returns the result of `train_reid`.

    start: the folder of a checkpoint to train on from, in place of a new model.
    adapters: fields of `AdapterArguments`; the backbone is then the tiny LLaVA on disk, whole or quantised.
    words: further words of the tokenizer.
    On the CPU unless `use_cpu` is False: there the same commands give the same bits.
    """
    processor, llava = tiny_processor_and_llava(*words)
    torch.manual_seed(0)
    fields = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids, **(model or {})}
    if start is not None:
        reid = MllmReIDModel.from_pretrained(start)
    elif adapters is None:
        reid = MllmReIDModel.from_mllm(copy.deepcopy(llava), **fields)
    else:
        backbone, of = folder / "backbone", AdapterArguments(**adapters)
        if not backbone.exists():
            copy.deepcopy(llava).save_pretrained(backbone)  # which writes into its configuration
        place = {"quantization_config": of.quantization_config(torch.float32)}
        if of.quantize and arguments.get("use_cpu", True):
            place["device_map"] = {"": "cpu"}
        reid = MllmReIDModel.from_mllm_pretrained(backbone, **place, **fields)
        prepare_training(reid, of, backbone=str(backbone), revision=None, dtype=torch.float32)
    if half:
        reid.mllm.to(torch.bfloat16)
    settings = {
        "identities_per_batch": 4,
        "images_per_identity": 2,
        "learning_rate": 1e-3,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    args = ReIDTrainingArguments(output_dir=str(folder / output), **{**settings, **arguments})
    batches = BatchArguments(**{"target": "caption", "val_identities": 4, **(batch or {})})
    return train_reid(reid, processor, dataset, batches, args)
