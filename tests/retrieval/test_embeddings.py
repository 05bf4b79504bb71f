"""Stored embeddings: the round trip, and folders that must be refused."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from modeling_mllmreid.retrieval.embeddings import load_embeddings, save_embeddings
from modeling_mllmreid.utils.errors import UserError

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


def rewritten(folder, content, features=FEATURES):
    """The folder with this JSON (text, or what it is made of), as if embed had written it."""
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "embeddings.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    save_file({"features": features}, folder / "embeddings.safetensors", metadata={"facts_sha256": digest})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "embeddings.json: not JSON"),
        ("[]", "embeddings.json: the whole content"),
        ({"file_names": NAMES}, "embeddings.json: field metadata"),
        ({"file_names": NAMES, "metadata": []}, "embeddings.json: field metadata"),
        ({"file_names": "abc", "metadata": {}}, "embeddings.json: field file_names"),
        ({"file_names": ["a", 3, "c"], "metadata": {}}, r"field file_names\[1\]"),
        ({"file_names": NAMES[:2], "metadata": {}}, "3 features for 2 file_names"),
        ({"file_names": ["a", "b", "a"], "metadata": {}}, "file_names: a comes 2 times"),
        ({"file_names": ["a", "../b", "c"], "metadata": {}}, r"file_names: \.\./b: a name that leaves its folder"),
        ({"file_names": ["a", "/etc/passwd", "c"], "metadata": {}}, "/etc/passwd: a name that leaves its folder"),
        ({"file_names": ["a", "x/../../b", "c"], "metadata": {}}, "a name that leaves its folder"),
        ({"file_names": ["a", "b\u001b[2J", "c"], "metadata": {}}, "a name with control characters"),
        ({"file_names": ["a", "b\0", "c"], "metadata": {}}, "a name with control characters"),
    ],
)
def test_a_foreign_json_is_refused_in_one_line(folder, content, message):
    rewritten(folder, content)
    with pytest.raises(UserError, match=message) as error:
        load_embeddings(folder)
    assert "\n" not in str(error.value)


def test_foreign_features_are_refused(folder):
    content = {"file_names": NAMES, "metadata": {}}
    broken = FEATURES.copy()
    broken[1, 1] = np.nan
    empty = FEATURES.copy()
    empty[2] = 0
    for features, message in (
        (broken, "row 1 holds NaN or infinity"),
        (empty, "row 2 is all zeros, equally far from everybody"),
        (FEATURES.astype(np.float64), "features are float64 of shape"),
        (FEATURES[0], r"features are float32 of shape \(2,\)"),
    ):
        rewritten(folder, content, features)
        with pytest.raises(UserError, match=message):
            load_embeddings(folder)


def test_names_that_no_index_can_hold_are_not_written(tmp_path):
    for name in ("../x", "\udcff.jpg", "a\nb"):
        with pytest.raises(UserError, match="file_names: "):
            save_embeddings(tmp_path / "new", FEATURES[:1], [name], {})
    assert not (tmp_path / "new").exists()


def test_two_writers_never_mix(tmp_path):
    """Of writers at once each leaves its own pair or another's, whole, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / ".embeddings.json.killed.part").touch()

    def write(count):
        for _ in range(20):
            names = [str(number) for number in range(count)]
            save_embeddings(folder, np.full((count, 4), count), names, {"count": count})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, (2, 3, 4)))
    stored = load_embeddings(folder)
    assert len(stored.file_names) == stored.metadata["count"] == stored.features[0, 0]
    assert sorted(file.name for file in folder.iterdir()) == ["embeddings.json", "embeddings.safetensors"]


def test_refused_folders(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: holds no embeddings.safetensors"):
        load_embeddings(tmp_path / "nowhere")
    index_file = folder / "embeddings.json"
    old = index_file.read_text()
    index_file.write_text(json.dumps({"file_names": ["x"], "metadata": {}}))
    with pytest.raises(UserError, match="embeddings.json does not belong to embeddings.safetensors"):
        load_embeddings(folder)
    index_file.write_text(old)
    save_file({"features": FEATURES}, folder / "embeddings.safetensors")
    with pytest.raises(UserError, match="not written by the embed command"):
        load_embeddings(folder)
    (folder / "embeddings.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(UserError, match="not readable"):
        load_embeddings(folder)
    index_file.unlink()
    with pytest.raises(UserError, match="holds no embeddings.json"):
        load_embeddings(folder)
