"""Fixtures that many tests share: a tiny processor, LLaVA, model, batch, and data set on disk."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from native import write_native
from PIL import Image

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.write import write_pedestrians

CAPTIONS = [
    "a man with a red shirt and blue jeans .",
    "a woman in a long green coat carries a black bag .",
    "short black hair and a yellow hat .",
    "a person with white shoes .",
]
TARGETS = [
    "he walks with a brown bag and grey shoes .",
    "she has long hair .",
    "the person wears a red skirt .",
    "a bag .",
]


def pytest_configure(config):
    """Uses one thread in this process and its children: tiny models are slower with more."""
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def pytest_collection_modifyitems(items):
    """Skips tests marked `gpu` on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage():
    """Keeps what is imported out of garbage collection, which every training starts and which took half of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU if there is one, or the CPU. Tests about the CPU use "cpu" or `use_cpu` instead."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def tiny_processor():
    return build_processor(CAPTIONS + TARGETS, height=64, width=32, patch_size=16)


@pytest.fixture
def make_llava(tiny_processor):
    """A new random LLaVA: three tower blocks, two language blocks."""
    return lambda seed=0: build_tiny_llava(tiny_processor, hidden_size=32, tower_layers=3, lm_layers=2, seed=seed)


@pytest.fixture
def make_model(make_llava, tiny_processor):
    """A new MllmReIDModel for 64 x 32 crops and four identities; takes further configuration fields."""

    def make(**fields):
        size = {"height": 64, "width": 32, "image_prefix_ids": tiny_processor.image_prefix_ids}
        torch.manual_seed(0)
        return MllmReIDModel.from_mllm(make_llava(), **{**size, "num_identities": 4, **fields})

    return make


@pytest.fixture
def make_batch(tiny_processor):
    """A batch of `n` samples for both branches, two images of each identity."""

    def make(n: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(seed)
        images = [Image.fromarray(rng.integers(0, 256, (70, 30, 3), dtype=np.uint8)) for _ in range(n)]
        targets = [tiny_processor.target_ids(TARGETS[(i // 2) % 4]) for i in range(n)]
        prompts = tiny_processor.text_prompts([CAPTIONS[i % 4] for i in range(n)])
        text = tiny_processor.build_inputs([prompt.ids for prompt in prompts], targets)
        text["caption_mask"] = tiny_processor.caption_mask(prompts, text["input_ids"].shape[1])
        return {
            "pixel_values": tiny_processor(images=images)["pixel_values"],
            "person_ids": torch.arange(n) // 2 % 4,
            **tiny_processor.build_inputs([tiny_processor.image_prompt_ids()] * n, targets),
            **{f"text_{name}": value for name, value in text.items()},
        }

    return make


@pytest.fixture
def count_calls():
    """count_calls(module) returns an object whose `calls` counts the forward passes of the module."""

    def count(module: torch.nn.Module) -> SimpleNamespace:
        seen = SimpleNamespace(calls=0)

        def hook(*_):
            seen.calls += 1

        module.register_forward_hook(hook)
        return seen

    return count


@pytest.fixture(scope="session")
def disk(tmp_path_factory) -> SimpleNamespace:
    """Folders: `people` (Market-1501 layout with captions), `native` (a LLaVA), `ours` (a checkpoint)."""
    root = tmp_path_factory.mktemp("disk")
    write_pedestrians(root / "people", train_identities=2, test_identities=3, images_per_camera=2, cameras=2, scenes=2)
    processor, llava = write_native(root / "native")
    size = {"height": 64, "width": 32}
    model = MllmReIDModel.from_mllm(llava, image_prefix_ids=processor.image_prefix_ids, **size)
    model.save_pretrained(root / "ours")
    processor.save_pretrained(root / "ours")
    return SimpleNamespace(people=root / "people", native=root / "native", ours=root / "ours")


@pytest.fixture
def broken_people(tmp_path) -> Path:
    """A query image and a truncated gallery image."""
    for folder, name in (("query", "0001_c1s1_000001_00.jpg"), ("bounding_box_test", "0001_c2s1_000001_00.jpg")):
        (tmp_path / "broken" / folder).mkdir(parents=True)
        Image.effect_noise((32, 64), 90).convert("RGB").save(tmp_path / "broken" / folder / name)
    last = tmp_path / "broken" / folder / name
    last.write_bytes(last.read_bytes()[:300])
    return tmp_path / "broken"
