"""The ONNX file of the vision form gives the model's embeddings for batches of any size."""

import numpy as np
import pytest
import torch
from encoders import SQUARE, write_encoder
from families import CONFIGS, build_reid

from modeling_mllmreid.hub import onnx as hub_onnx
from modeling_mllmreid.hub.onnx import check_onnx, export_onnx
from modeling_mllmreid.model import MllmReIDVisionConfig, MllmReIDVisionModel
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def form(make_model):
    """A vision form whose square position embeddings are interpolated to crops of 64 x 32."""
    model = make_model()
    head = model.reid_head["vision"].bottleneck
    torch.nn.init.uniform_(head.running_mean)
    torch.nn.init.uniform_(head.weight, 0.5, 2.0)
    form = MllmReIDVisionModel.from_reid_model(model).eval()
    patches = form.config.height // 16 * (form.config.width // 16)
    assert form.tower.config.image_size**2 // 16**2 != patches  # else nothing would be interpolated
    torch.nn.init.normal_(form.tower.embeddings.position_embedding.weight)
    return form


def test_embeddings_in_any_batch_from_one_file(form, tmp_path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    state = torch.get_rng_state()
    export_onnx(form.train(), tmp_path / "model.onnx")
    assert form.training and torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert b".py" not in (tmp_path / "model.onnx").read_bytes()  # no path of this machine
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (pixels,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixel_values", "tensor(float)", [3, 64, 32])
    assert (embedding.name, embedding.type, embedding.shape[1:]) == ("embedding", "tensor(float)", [32])
    assert isinstance(pixels.shape[0], str) and pixels.shape[0] == embedding.shape[0]
    form.eval()
    for count in (1, 2, 5):
        crops = torch.rand(count, 3, 64, 32)
        with torch.no_grad():
            expected = form.encode_images(crops).numpy()
        np.testing.assert_allclose(session.run(None, {"pixel_values": crops.numpy()})[0], expected, atol=1e-5, rtol=0)
    torch.nn.init.uniform_(form.reid_head.bottleneck.running_mean)
    with pytest.raises(RuntimeError, match=r"model\.onnx: embeddings are .* off the model's, over 0.0001$"):
        check_onnx(form, tmp_path / "model.onnx")


def test_position_embeddings_that_fit_the_crops(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tower = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    tower |= {"num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    form = MllmReIDVisionModel(MllmReIDVisionConfig(vision_config=tower, height=32, width=32))
    export_onnx(form, tmp_path / "model.onnx")  # which compares
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize(("kind", "pooling"), [("dinov2", "gem"), ("swin", "mean")])
def test_encoders_of_other_architectures(kind, pooling, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    side = SQUARE.get(kind, 64)
    folder = write_encoder(tmp_path / kind, kind)
    model = MllmReIDVisionModel.from_encoder_pretrained(folder, pooling=pooling, height=2 * side, width=side)
    export_onnx(model, tmp_path / "model.onnx")  # which compares
    assert (tmp_path / "model.onnx").is_file()


# Further up are CLIP and DINOv2, the towers of LLaVA; Idefics3 and LLaVA-OneVision have towers of the others.
TRACED = [family for family in CONFIGS if not family.startswith("LLaVA") and family != "Idefics3"]
# Towers of packed patches are traced in a form of their own; the others need none.
PACKED = ("Qwen2.5-VL", "Qwen3-VL", "VideoLLaMA 3")
FAST = PACKED[1:2]


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in TRACED])
def test_the_vision_form_of_every_family_in_any_batch(family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    # With windows of 2 x 2 image tokens, one window is not whole.
    unit = build_reid(family).backbone.unit
    size = {"height": 2 * unit, "width": 3 * unit}
    form = MllmReIDVisionModel.from_reid_model(build_reid(family, **size)).eval()
    export_onnx(form, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    crops = torch.randn(3, 3, *size.values())
    with torch.no_grad():
        expected = form.encode_images(crops).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    for batch in (crops[:1], crops):
        embeddings = session.run(None, {"pixel_values": batch.numpy()})[0]
        np.testing.assert_allclose(embeddings, expected[: len(batch)], atol=1e-5, rtol=0)


def test_half_precision_becomes_float32_and_large_weights_get_a_second_file(form, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(hub_onnx, "SINGLE_FILE", 0)
    form.tower.to(torch.bfloat16)
    (tmp_path / "part").mkdir()
    export_onnx(form, tmp_path / "part" / "model.onnx")
    assert form.tower.dtype == torch.bfloat16
    (tmp_path / "part").rename(tmp_path / "whole")  # as an export is, once it is written
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"model.onnx", "model.onnx.data"}
    session = onnxruntime.InferenceSession(tmp_path / "whole" / "model.onnx", providers=["CPUExecutionProvider"])
    crops = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected = form.float().encode_images(crops).numpy()
    np.testing.assert_allclose(session.run(None, {"pixel_values": crops.numpy()})[0], expected, atol=1e-5, rtol=0)


def test_a_failed_export_leaves_no_file(form, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    path = tmp_path / "model.onnx"

    def break_off(*args, **kwargs):
        path.write_bytes(b"half")
        path.with_name("model.onnx.data").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch.onnx, "export", break_off)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(form, path)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_reported_with_the_fix(form, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"^onnx: onnxscript not installed: pip install 'mllmreid\[onnx\]'$"):
        export_onnx(form, tmp_path / "model.onnx")
