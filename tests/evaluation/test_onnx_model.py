"""`--model FILE.onnx`: embeddings of ONNX files of many kinds equal a computation by hand; bad files give one line."""

import json
import logging
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.commands import embed, evaluate, export, search
from modeling_mllmreid.evaluation import onnx_files
from modeling_mllmreid.evaluation.embedding import embed_images
from modeling_mllmreid.evaluation.onnx_encoder import load_onnx
from modeling_mllmreid.evaluation.onnx_files import find_onnx
from modeling_mllmreid.model import MllmReIDVisionModel, MllmReIDVisionProcessor
from modeling_mllmreid.options.arguments import ModelArguments, OnnxArguments
from modeling_mllmreid.retrieval.embeddings import load_embeddings
from modeling_mllmreid.training.embedder import load_embedder
from modeling_mllmreid.training.loading import load_encoder, load_model, load_text_model
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.processes import usable_cores

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WEIGHTS = np.random.default_rng(1).normal(size=(3, 5))


def model(path, *, shape=("b", 3, 8, 4), kind="FLOAT", output=("b", 5), nodes=None, tail=(), weights=None, **more):
    """Writes an encoder: the mean of each channel times a matrix (3, 5). `tail` are further nodes up to "feature"."""
    helper, types = onnx.helper, onnx.TensorProto
    image = getattr(types, kind)
    format = onnx.helper.tensor_dtype_to_np_dtype(image) if kind != "UINT8" else np.float32
    axes = [2, 3] if shape is None or shape[1] in (3, None, "c") else [1, 2]
    name = "product" if tail else "feature"
    start = [helper.make_node("Cast", ["image"], ["pixels"], to=getattr(types, "FLOAT" if kind == "UINT8" else kind))]
    start += [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], [name]),
    ]
    tensors = [onnx.numpy_helper.from_array((WEIGHTS if weights is None else weights).astype(format), "weights")]
    tensors += more.get("tensors", [])
    inputs = [helper.make_tensor_value_info("image", image, shape), *more.get("inputs", [])]
    out = getattr(types, "FLOAT" if kind == "UINT8" else kind)
    outputs = [helper.make_tensor_value_info("feature", out, output), *more.get("outputs", [])]
    graph = helper.make_graph([*(nodes or start), *tail], "encoder", inputs, outputs, tensors)
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in more.get("metadata", {}).items():
        built.metadata_props.add(key=key, value=value)
    onnx.save(built, path, **more.get("save", {}))
    return path


def node(*arguments, **attributes):
    return onnx.helper.make_node(*arguments, **attributes)


@pytest.fixture
def images():
    noise = np.random.default_rng(0).integers(0, 256, (5, 16, 8, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def by_hand(images, size=(4, 8), rescale=1 / 255, mean=MEAN, std=STD, channels=slice(None), filter=2):
    pixels = np.stack([np.asarray(image.resize(size, filter), dtype=np.float64) for image in images])
    means = ((pixels * rescale - mean) / std)[..., channels].mean((1, 2))
    features = means @ WEIGHTS
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def embeddings(path, images, size=None, **options):
    encoder, processor = load_onnx(path, OnnxArguments(**options), size or {})
    return encoder.encode_images(processor(images=images)["pixel_values"])


@pytest.mark.parametrize(
    ("layout", "options", "expected"),
    [
        ({}, {}, {}),
        ({}, {"onnx_channels": "bgr"}, {"channels": slice(None, None, -1)}),
        ({"shape": ("b", 8, 4, 3)}, {}, {}),
        ({"shape": (1, 3, 8, 4), "output": (1, 5)}, {}, {}),
        ({"shape": (2, 3, 8, 4), "output": (2, 5)}, {}, {}),
        ({"shape": (8, 3, 8, 4), "output": (8, 5)}, {}, {}),
        ({"kind": "FLOAT16"}, {}, {}),
        ({"kind": "DOUBLE"}, {}, {}),
        ({"kind": "UINT8", "shape": ("b", 8, 4, 3)}, {}, {"rescale": 1, "mean": 0, "std": 1}),
        ({"shape": None}, {"size": {"height": 8, "width": 4}}, {}),
        ({"shape": ("b", "c", "h", "w")}, {}, {"size": (128, 256)}),
        ({"shape": ("b", 3, "h", 4)}, {"size": {"height": 6}}, {"size": (4, 6)}),
        ({}, {"onnx_rescale": 1.0, "onnx_mean": [0.0], "onnx_std": [1.0]}, {"rescale": 1, "mean": 0, "std": 1}),
        ({}, {"onnx_mean": [0.1, 0.2, 0.3], "onnx_std": [2.0]}, {"mean": np.array([0.1, 0.2, 0.3]), "std": 2}),
        ({}, {"onnx_resample": "bicubic"}, {"filter": 3}),
    ],
)
def test_equals_a_computation_by_hand(tmp_path, images, layout, options, expected):
    tolerance = 3e-3 if layout.get("kind") == "FLOAT16" else 1e-5
    computed = embeddings(model(tmp_path / "m.onnx", **layout), images, **options)
    np.testing.assert_allclose(computed, by_hand(images, **expected), atol=tolerance)
    assert computed.dtype == np.float32


def test_the_file_and_a_json_file_next_to_it_set_what_the_options_do_not(tmp_path, images):
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": 0.5, "rescale_factor": 0.01, "resample": 3}
    size = {"height": 6, "width": 2}
    path = model(tmp_path / "m.onnx", shape=("b", 3, "h", "w"))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "size": size}))
    expected = {"rescale": 0.01, "mean": np.array([0.5, 0.4, 0.3]), "std": 0.5, "filter": 3, "size": (2, 6)}
    np.testing.assert_allclose(embeddings(path, images), by_hand(images, **expected), atol=1e-5)
    computed = embeddings(path, images, {"width": 3}, onnx_mean=[0.2])
    np.testing.assert_allclose(computed, by_hand(images, **{**expected, "mean": 0.2, "size": (3, 6)}), atol=1e-5)
    inside = {"image_processor": json.dumps({**settings, "do_normalize": False}), "trained_on": '["msmt17"]'}
    path = model(tmp_path / "m.onnx", metadata=inside)
    expected = {"rescale": 0.01, "mean": 0, "std": 1, "filter": 3}
    np.testing.assert_allclose(embeddings(path, images), by_hand(images, **expected), atol=1e-5)
    assert load_onnx(path, OnnxArguments(), {})[0].config.trained_on == ["msmt17"]
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": [0.0, 1.0, 1.0]}')
    with pytest.raises(UserError, match="image_std has a 0"):
        load_onnx(model(tmp_path / "m.onnx"), OnnxArguments(), {})


def test_outputs_that_a_pooling_left_with_more_axes(tmp_path, images):
    axes = [onnx.numpy_helper.from_array(np.array([2, 3]), "axes")]
    path = model(
        tmp_path / "m.onnx",
        output=("b", 5, 1, 1),
        tail=[node("Unsqueeze", ["product", "axes"], ["feature"])],
        tensors=axes,
    )
    np.testing.assert_allclose(embeddings(path, images), by_hand(images), atol=1e-5)
    axes = [onnx.numpy_helper.from_array(np.array([0]), "axes")]
    path = model(
        tmp_path / "m.onnx",
        shape=(1, 3, 8, 4),
        output=(5,),
        tail=[node("Squeeze", ["product", "axes"], ["feature"])],
        tensors=axes,
    )
    np.testing.assert_allclose(embeddings(path, images), by_hand(images), atol=1e-5)


def test_a_batch_that_the_file_claims_and_cannot_run_is_run_one_by_one(tmp_path, images, caplog):
    mixed = [node("ReduceMean", ["product"], ["all"], axes=[0], keepdims=1), node("Mul", ["all", "all"], ["square"])]
    mixed += [node("Add", ["product", "square"], ["feature"])]
    path = model(tmp_path / "m.onnx", tail=mixed)
    with caplog.at_level(logging.WARNING):
        together = embeddings(path, images)
    assert "one crop at a time: its features depend on the other crops" in caplog.text
    np.testing.assert_array_equal(together, np.concatenate([embeddings(path, [image]) for image in images]))
    path = model(tmp_path / "m.onnx", shape=(4, 3, 8, 4), output=(4, 5), tail=mixed)
    with pytest.raises(UserError, match="takes batches of 4 crops, and its features depend on the other crops"):
        load_onnx(path, OnnxArguments(), {})
    constant = [onnx.numpy_helper.from_array(np.array([1, 5]), "one")]
    path = model(tmp_path / "m.onnx", tail=[node("Reshape", ["product", "one"], ["feature"])], tensors=constant)
    np.testing.assert_allclose(embeddings(path, images), by_hand(images), atol=1e-5)


def external(path, location):
    """Writes an encoder whose matrix lies in another file."""
    model(path, save={"save_as_external_data": True, "location": "w.data", "size_threshold": 0})
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())
    return path


def info(name, kind, shape):
    return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)


BAD_MODELS = {
    "two outputs": (
        {"outputs": [info("means", "FLOAT", ("b", 3))]},
        r"has 2 outputs \('feature' \(float\) \['b', 5\], 'means' .*\): choose the feature with --onnx_output NAME$",
    ),
    "two inputs": ({"inputs": [info("camera", "INT64", ("b",))]}, r"has 2 inputs \(.*'camera' \(int64\)"),
    "whole numbers": (
        {"shape": ("b", 77), "kind": "INT64", "nodes": [node("Identity", ["image"], ["feature"])], "output": None},
        r"its input 'image' \(int64\) \['b', 77\] is not an image, which has 4 axes",
    ),
    "one channel": (
        {"shape": ("b", 1, 8, 4), "nodes": [node("Flatten", ["image"], ["feature"])], "output": None},
        "has no 3 colour channels: only models of colour images can be used",
    ),
    "too large": ({"shape": ("b", 3, 5000, 4)}, "its input has the height 5000, more than 4096 pixels"),
    "a map": (
        {"nodes": [node("Identity", ["image"], ["feature"])], "output": None},
        r"its output 'feature' has the shape \[1, 3, 8, 4\] for a batch of 1, not one feature for each crop",
    ),
    "an unknown operator": ({"nodes": [node("Foo", ["image"], ["feature"], domain="x")]}, "onnxruntime cannot load it"),
    "NaN": ({"weights": np.full((3, 5), np.nan)}, "the feature of a crop has NaN or infinity: check onnx_rescale"),
    "bad settings": ({"metadata": {"image_processor": "{"}}, "m.onnx: metadata image_processor: not JSON"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_is_no_image_encoder_gives_one_line(tmp_path, images, kind):
    fields, message = BAD_MODELS[kind]
    with pytest.raises(UserError, match=message):
        embeddings(model(tmp_path / "m.onnx", **fields), images)


def test_other_outputs_can_be_chosen(tmp_path, images):
    path = model(tmp_path / "m.onnx", outputs=[info("means", "FLOAT", ("b", 3))])
    np.testing.assert_allclose(embeddings(path, images, onnx_output="feature"), by_hand(images), atol=1e-5)
    assert embeddings(path, images, onnx_output="means").shape == (5, 3)
    with pytest.raises(UserError, match=r"^onnx_output 'x': .* has 'feature', 'means': give one$"):
        embeddings(path, images, onnx_output="x")
    path = model(
        tmp_path / "m.onnx", tail=[node("ArgMax", ["product"], ["feature"], axis=1)], kind="FLOAT", output=("b", 1)
    )
    proto = onnx.load(path)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(proto, path)
    with pytest.raises(UserError, match=r"its output 'feature' \(int64\) .* is not a feature"):
        embeddings(path, images)


def test_options_that_contradict_the_file(tmp_path, images):
    path = model(tmp_path / "m.onnx", kind="UINT8")
    for options, message in (
        ({"size": {"height": 9}}, r"^height 9: the input of .*m\.onnx has the height 8: leave height out$"),
        ({"onnx_layout": "nhwc"}, "has no 3 colour channels in the layout nhwc: leave onnx_layout out"),
        ({"onnx_std": [2.0]}, r"^onnx_std: the input of .* is uint8, the pixels as they are: leave onnx_std out$"),
    ):
        with pytest.raises(UserError, match=message):
            embeddings(path, images, **options)
    with pytest.raises(UserError, match="onnx_rescale: give onnx_mean and onnx_std too"):
        embeddings(model(tmp_path / "m.onnx"), images, onnx_rescale=1.0)
    with pytest.raises(UserError, match="dtype bfloat16: an ONNX file has its own number format"):
        load_embedder(ModelArguments(str(path), dtype="bfloat16"))
    for name, values in (("onnx_mean", [1.0, 2.0]), ("onnx_std", [1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match=name):
            OnnxArguments(**{name: values})


def test_files_that_are_no_onnx(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    for content, message in (
        (b"hello", "not an ONNX file, or a damaged one: export the model again"),
        (b"", "not an ONNX file, or one without a graph"),
        (model(tmp_path / "whole.onnx").read_bytes()[:-20], "not an ONNX file, or a damaged one"),
        (pickle.dumps({"a": 1}), "a pickle, which no command but convert reads: make a folder of it with convert FILE"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^model {re.escape(str(path))}: {message}"):
            load_embedder(ModelArguments(str(path)))
    path.unlink()
    with pytest.raises(UserError, match="m.onnx: no such file: correct the path"):
        load_embedder(ModelArguments(str(path)))
    monkeypatch.setattr("modeling_mllmreid.evaluation.onnx_files.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxruntime not installed: pip install 'mllmreid\[onnx\]'$"):
        load_embedder(ModelArguments(str(tmp_path / "whole.onnx")))


def test_external_data_stays_in_the_folder_and_is_part_of_the_digest(tmp_path, images):
    path = external(tmp_path / "m.onnx", "w.data")
    np.testing.assert_allclose(embeddings(path, images), by_hand(images), atol=1e-5)
    digest = load_onnx(path, OnnxArguments(), {})[0].file.digest
    external(path, "w.data")
    (tmp_path / "w.data").write_bytes(bytes([*(tmp_path / "w.data").read_bytes()[:-8], *bytes(8)]))
    assert load_onnx(path, OnnxArguments(), {})[0].file.digest != digest
    (tmp_path / "inner").mkdir()
    for location, message in (
        ("../w.data", r"its external data '\.\./w\.data' is outside of its folder"),
        (str(tmp_path / "w.data"), "is outside of its folder"),
        ("gone.data", r"its external data 'gone\.data' is missing: put it in the same folder"),
    ):
        with pytest.raises(UserError, match=message):
            load_onnx(external(tmp_path / "inner" / "m.onnx", location), OnnxArguments(), {})


def test_a_folder_stands_for_its_only_onnx_file(tmp_path):
    first = model(tmp_path / "a.onnx")
    assert find_onnx(str(tmp_path)) == first
    model(tmp_path / "b.onnx")
    with pytest.raises(UserError, match=r"has 2 ONNX files: give one of them: a\.onnx, b\.onnx$"):
        find_onnx(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert find_onnx(str(tmp_path)) is None


def test_other_commands_refuse_single_files(tmp_path):
    path = model(tmp_path / "m.onnx")
    torch.save({}, tmp_path / "m.pth")
    (tmp_path / "m.safetensors").touch()
    for load in (load_encoder, load_model, lambda arguments: load_text_model(MllmReIDVisionModel, arguments)):
        for name, message in (
            (path, "an ONNX file can be used by embed, search and evaluate alone: give a checkpoint's folder"),
            (tmp_path / "m.pth", "a pickle, which no command but convert reads: make a folder of it with convert"),
            (tmp_path / "m.safetensors", "a file of weights: give the checkpoint's folder"),
        ):
            with pytest.raises(UserError, match=message):
                load(ModelArguments(str(name)))


def test_embed_search_and_evaluate(disk, tmp_path, capsys):
    path, market = model(tmp_path / "m.onnx", shape=(1, 3, "h", "w"), output=(1, 5)), str(disk.people / "query")
    options = ["--height", "64", "--width", "32", "--onnx_channels", "bgr", "--onnx_trained_on", "cuhk_pedes"]
    embed.main(["--model", str(path), "--images", market, "--output", str(tmp_path / "e"), *options])
    assert "m.onnx: 64x32 bgr nchw, bilinear, rescale 0.00392157, mean 0.485 0.456 0.406" in capsys.readouterr().out
    stored = load_embeddings(tmp_path / "e")
    opened = [Image.open(disk.people / "query" / name) for name in stored.file_names]
    expected = by_hand(opened, size=(32, 64), channels=slice(None, None, -1))
    np.testing.assert_allclose(stored.features, expected, atol=1e-5)
    query = str(disk.people / "query" / stored.file_names[0])
    find = ["--query", query, "--embeddings", str(tmp_path / "e"), "--output", str(tmp_path / "sheet.png")]
    search.main(find)
    assert f"   1  0.0000  {stored.file_names[0]}" in capsys.readouterr().out
    other = model(tmp_path / "other.onnx", shape=(1, 3, "h", "w"), output=(1, 5), metadata={"a": "b"})
    with pytest.raises(UserError, match=r"other\.onnx: is another file than the one of the embeddings"):
        search.main([*find, "--model", str(other)])
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "out")]
    evaluate.main(["--model", str(path), "--compare", str(other), *data, *options])
    assert "warning: cuhk_pedes and market1501 share images" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["weights"] == stored.metadata["weights"] and report["onnx"]["onnx_channels"] == "bgr"
    assert report["dtype"] == "float32" and list(report["metrics"]) == ["vision"]
    captions = ["--captions_file", str(disk.people / "reid_raw.json")]
    for flags, message in (
        (["--model", str(path), "--test_feature", "llm"], "an ONNX file has no such settings: leave out test_feature"),
        (["--model", str(disk.ours), "--onnx_mean", "0"], "onnx_mean: only for ONNX files, and no model is one"),
        (
            ["--model", str(path), "--text_queries", "true", *captions],
            "text_queries: a vision form or an ONNX file reads",
        ),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main([*flags, *data])


def test_a_fresh_process_embeds_and_refuses_without_torch(tmp_path, images):
    path = model(tmp_path / "m.onnx")
    (tmp_path / "crops").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "crops" / f"{number}.png")
    embed_all = ["embed", "--model", str(path), "--images", str(tmp_path / "crops"), "--output", str(tmp_path / "e")]
    code = f"""
import sys
from modeling_mllmreid.commands.main import run
assert run({[*embed_all, "--flip_test"]}) == 0
assert run(["embed", "--modle", "x"]) == 2
heavy = {{"torch", "transformers", "datasets", "pandas", "accelerate", "scipy", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    sums = by_hand(images) + by_hand(mirrored)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(load_embeddings(tmp_path / "e").features, expected, atol=1e-5)


def test_loading_processes_change_nothing(tmp_path, disk):
    path, paths = model(tmp_path / "m.onnx"), sorted((disk.people / "query").iterdir())[:3]
    encoder, processor = load_onnx(path, OnnxArguments(), {})
    alone, loaded = (
        embed_images(encoder, processor, paths, batch_size=2, num_workers=workers, progress=False) for workers in (0, 1)
    )
    assert list(alone) == ["vision"]
    np.testing.assert_array_equal(loaded["vision"], alone["vision"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken.png: not an image"):
        embed_images(encoder, processor, [*paths, tmp_path / "broken.png"], progress=False)


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("3,2", 3), ("0", None), ("", None), ("many", None)])
def test_the_threads_of_a_run(given, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert onnx_files._threads() == (expected or usable_cores())


def test_an_exported_file_alone_embeds_like_the_vision_form(disk, tmp_path):
    pytest.importorskip("onnxscript")
    form, images = tmp_path / "vision", ["--images", str(disk.people / "query")]
    loaded, processor = load_model(ModelArguments(str(disk.ours)))
    loaded.config.trained_on = ["market1501"]
    vision, processor = MllmReIDVisionModel.from_reid_model(loaded), MllmReIDVisionProcessor(processor.image_processor)
    for part in (vision, processor):
        part.save_pretrained(tmp_path / "own")
    export.main(["--model", str(tmp_path / "own"), "--onnx", "true", "--output", str(form)])
    (tmp_path / "alone").mkdir()
    (form / "model.onnx").rename(tmp_path / "alone" / "model.onnx")
    computed = []
    for name in (form, tmp_path / "alone"):
        embed.main(["--model", str(name), *images, "--output", str(tmp_path / f"e {name.name}")])
        computed.append(load_embeddings(tmp_path / f"e {name.name}").features)
    np.testing.assert_allclose(computed[1], computed[0], atol=1e-4)
    assert load_embedder(ModelArguments(str(tmp_path / "alone")))[0].config.trained_on == ["market1501"]
