"""Stored embeddings: the round trip, and folders that must be refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.retrieval.index import load_embeddings, save_embeddings

FEATURES = np.arange(6, dtype=np.float32).reshape(3, 2)
NAMES = ["a.jpg", "ü/b.jpg", "c.jpg"]


@pytest.fixture
def folder(tmp_path):
    save_embeddings(tmp_path / "out" / "gallery", FEATURES, NAMES, {"model": "tiny", "test_feature": "reid"})
    return tmp_path / "out" / "gallery"


def test_round_trip(folder):
    loaded = load_embeddings(folder)
    np.testing.assert_array_equal(loaded.features, FEATURES)
    assert loaded.features.dtype == np.float32 and loaded.file_names == NAMES
    assert loaded.metadata == {"model": "tiny", "test_feature": "reid"}
    assert sorted(file.name for file in folder.iterdir()) == ["embeddings.json", "embeddings.safetensors"]
    save_embeddings(folder, FEATURES[:0], [], {})
    assert load_embeddings(folder).features.shape == (0, 2)


def test_a_failed_save_leaves_the_old_folder(folder):
    with pytest.raises(UserError, match="for 2 file names"):
        save_embeddings(folder, FEATURES, NAMES[:2], {})
    with pytest.raises(TypeError):
        save_embeddings(folder, FEATURES, NAMES, {"model": object()})
    assert load_embeddings(folder).metadata["model"] == "tiny"
    assert len(list(folder.iterdir())) == 2


def test_refused_folders(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: holds no embeddings.safetensors"):
        load_embeddings(tmp_path / "nowhere")
    facts = folder / "embeddings.json"
    old = facts.read_text()
    facts.write_text(json.dumps({"file_names": ["x"], "metadata": {}}))
    with pytest.raises(UserError, match="embeddings.json does not belong to embeddings.safetensors"):
        load_embeddings(folder)
    facts.write_text(old)
    save_file({"features": FEATURES}, folder / "embeddings.safetensors")
    with pytest.raises(UserError, match="not written by the embed command"):
        load_embeddings(folder)
    (folder / "embeddings.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(UserError, match="not readable"):
        load_embeddings(folder)
    facts.unlink()
    with pytest.raises(UserError, match="holds no embeddings.json"):
        load_embeddings(folder)
