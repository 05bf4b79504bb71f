"""A handful of rendered people, a tiny native LLaVA and a checkpoint of ours around it, all on disk."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from native import write_native

from modeling_mllmreid.data.synthetic import write_pedestrians
from modeling_mllmreid.model import MllmReIDModel


@pytest.fixture(scope="session")
def disk(tmp_path_factory) -> SimpleNamespace:
    """Folders: `people` (Market-1501 layout with captions), `native` (a LLaVA), `ours` (a checkpoint)."""
    root = tmp_path_factory.mktemp("disk")
    write_pedestrians(root / "people", train_identities=2, test_identities=3, images_per_camera=2, cameras=2)
    processor, llava = write_native(root / "native")
    size = {"height": 64, "width": 32}
    model = MllmReIDModel.from_mllm(llava, image_prefix_ids=processor.image_prefix_ids, **size)
    model.save_pretrained(root / "ours")
    processor.save_pretrained(root / "ours")
    return SimpleNamespace(people=root / "people", native=root / "native", ours=root / "ours")


@pytest.fixture
def broken_people(tmp_path) -> Path:
    """A query and a gallery image, the second one cut off."""
    from PIL import Image

    for folder, name in (("query", "0001_c1s1_000001_00.jpg"), ("bounding_box_test", "0001_c2s1_000001_00.jpg")):
        (tmp_path / "broken" / folder).mkdir(parents=True)
        Image.effect_noise((32, 64), 90).convert("RGB").save(tmp_path / "broken" / folder / name)
    last = tmp_path / "broken" / folder / name
    last.write_bytes(last.read_bytes()[:300])
    return tmp_path / "broken"
