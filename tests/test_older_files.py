"""Files of version 0.1.0 with old field names are still read."""

import json

import pytest
import torch

from modeling_mllmreid import load_embeddings, save_embeddings
from modeling_mllmreid.model import MllmReIDConfig
from modeling_mllmreid.utils.json_files import check_content
from modeling_mllmreid.utils.report_formats import EmbedMetadata

METADATA = {
    "model": "runs/demo",
    "revision": None,
    "dtype": "float32",
    "fields": {},
    "images": "crops",
    "test_feature": "llm",
    "height": 64,
    "width": 32,
    "flip_test": False,
}


def test_a_thin_checkpoint_with_the_old_fingerprint_name_loads(make_model, tmp_path):
    config = make_model(backbone="owner/llava", backbone_revision="main", own_modules=[]).config
    config.backbone_fingerprint = [0.5, 1.5]
    stored = config.to_dict()
    assert MllmReIDConfig.from_dict(stored).backbone_fingerprint == [0.5, 1.5]
    stored["backbone_probe"] = stored.pop("backbone_fingerprint")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = MllmReIDConfig.from_pretrained(tmp_path)
    assert loaded.backbone_fingerprint == [0.5, 1.5] and "backbone_probe" not in loaded.to_dict()


@pytest.mark.parametrize("name", ["fingerprint", "probe"])
def test_an_index_with_the_old_fingerprint_name_loads(name, tmp_path):
    save_embeddings(tmp_path, torch.eye(2).numpy(), ["a.jpg", "b.jpg"], {**METADATA, name: [0.0, 1.0]})
    assert check_content(load_embeddings(tmp_path).metadata, EmbedMetadata, where="x").fingerprint == [0.0, 1.0]
