"""A small rendered world on disk, and runs of the real training on it."""

import copy

import pytest
import torch

from modeling_mllmreid.data import load_reid_dataset
from modeling_mllmreid.data.synthetic import sample_descriptions, write_pedestrians
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.tiny.llava import build_processor, build_tiny_llava
from modeling_mllmreid.training import (
    AdapterArguments,
    BatchArguments,
    ReIDTrainingArguments,
    prepare_training,
    train_reid,
)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Twelve people to train on, four to test on, three cameras, with captions."""
    folder = tmp_path_factory.mktemp("world") / "people"
    write_pedestrians(folder, train_identities=12, test_identities=4, images_per_camera=2, cameras=3)
    return folder


@pytest.fixture(scope="session")
def world(people):
    captions = people / "reid_raw.json"
    return load_reid_dataset("market1501", data_dir=people, captions_file=str(captions))


@pytest.fixture(scope="session")
def parts():
    texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
    processor = build_processor(texts, height=64, width=32, patch_size=16)
    return processor, build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)


@pytest.fixture
def train(world, parts, tmp_path):
    """train(output=..., batch={...}, model={...}, adapters={...}, **training arguments) -> what `train_reid` returns.

    start: the folder of a checkpoint to train on from, in place of a new model.

    adapters: fields of `AdapterArguments`; the backbone is then the tiny LLaVA on disk, whole or quantised.
    """
    processor, llava = parts

    def run(output="run", *, batch=None, model=None, dataset=None, half=False, adapters=None, start=None, **arguments):
        torch.manual_seed(0)
        fields = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids, **(model or {})}
        if start is not None:
            reid = MllmReIDModel.from_pretrained(start)
        elif adapters is None:
            reid = MllmReIDModel.from_mllm(copy.deepcopy(llava), **fields)
        else:
            backbone, of = tmp_path / "backbone", AdapterArguments(**adapters)
            if not backbone.exists():
                llava.save_pretrained(backbone)
            config = of.quantization_config(torch.float32)
            reid = MllmReIDModel.from_mllm_pretrained(backbone, quantization_config=config, **fields)
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
        args = ReIDTrainingArguments(output_dir=str(tmp_path / output), **{**settings, **arguments})
        batches = BatchArguments(**{"target": "caption", "val_identities": 4, **(batch or {})})
        return train_reid(reid, processor, world if dataset is None else dataset, batches, args)

    return run
