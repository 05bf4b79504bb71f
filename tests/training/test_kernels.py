"""Kernels of a training step: liger-kernel through Triton's interpreter, and compiled decoder layers."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import build_reid, prompts
from safetensors import safe_open
from transformers.utils import is_bitsandbytes_available

from modeling_mllmreid.model.adapters import inject_adapter
from modeling_mllmreid.training import kernels
from modeling_mllmreid.training.guards import explain_error
from modeling_mllmreid.training.kernels import check_kernels, compile_layers
from modeling_mllmreid.training.lora import fuse_lora
from modeling_mllmreid.utils.errors import UserError

LIGER_FAMILIES = ("LLaVA, CLIP", "InternVL", "Gemma 3", "Qwen3-VL")


# ---- liger-kernel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def liger(people):
    """The differences that `liger_on_cpu` prints."""
    pytest.importorskip("liger_kernel", reason="needs liger-kernel: pip install liger-kernel")
    script = Path(__file__).parents[1] / "helpers" / "liger_on_cpu.py"
    done = subprocess.run(
        [sys.executable, str(script), str(people), *LIGER_FAMILIES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.partition("RESULT ")[2]) | {"log": done.stderr}


def test_liger_kernels_equal_the_stock_ones(liger):
    for family in LIGER_FAMILIES[:-1]:
        result = liger[family]
        # Two norms and an MLP in one layer, and the last norm; Gemma 3 has six norms in a layer.
        assert result["changed"] == (8 if family == "Gemma 3" else 4), family
        assert result["difference"] < 2e-5, family
        assert result["half"][0] < 1.2 * result["half"][1], family
        assert result["same_classes"] and not result["elsewhere"], family
    assert liger["rotary"] == "transformers.models.llama.modeling_llama"


def test_a_training_with_liger_has_the_same_weights_although_diagnostics_measure_each_step(liger):
    # A second backward pass through the same graph would give wrong gradients.
    assert liger["training"]["difference"] < 1e-5 and liger["training"]["measured"] == []


def test_a_family_that_liger_does_not_fit_runs_without_it(liger):
    result = liger["Qwen3-VL"]
    message = "use_liger_kernel: a language model of type qwen3_vl_text runs without liger-kernel: "
    if not result["changed"]:
        assert liger["log"].count(message) == 1
    assert result["difference"] < 2e-5


def test_an_unknown_family_runs_without_liger(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    calls = []

    def of_instance(model, **settings):  # as liger-kernel does for a family that it does not know
        calls.append(settings)

    fake = SimpleNamespace(_apply_liger_kernel_to_instance=of_instance)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    model = build_reid("LLaVA, CLIP")
    inject_adapter(model.mllm, {"r": 2, "target_modules": ".*q_proj"})
    assert fuse_lora(model) > 0  # which changes modules too
    with caplog.at_level(logging.WARNING):
        assert kernels.use_liger(model.language_model) == 0
    assert calls == [{"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert [record.getMessage() for record in caplog.records] == [
        "use_liger_kernel: a language model of type llama runs without liger-kernel: it does not know this family"
    ]


def test_liger_without_package_or_gpu_is_refused(monkeypatch):
    args = SimpleNamespace(use_liger_kernel=True, torch_compile=False, device=torch.device("cpu"))
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
    with pytest.raises(UserError) as stop:
        check_kernels(args)
    assert str(stop.value) == (
        "use_liger_kernel: liger-kernel is not installed: pip install liger-kernel, or leave it out"
    )
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: True)
    with pytest.raises(UserError) as stop:
        check_kernels(args)
    assert str(stop.value) == (
        "use_liger_kernel: its kernels need a CUDA GPU, and this training uses cpu: leave it out"
    )
    args.device = torch.device("cuda")
    check_kernels(args)


# ---- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def step(model):
    model.zero_grad()
    pixels = torch.randn(4, 3, model.config.height, model.config.width, generator=torch.Generator().manual_seed(1))
    output = model(pixels, **prompts(model, 4), person_ids=torch.tensor([0, 0, 1, 1]))
    output.loss.backward()
    return {"loss": output.loss.detach()} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("family", ["LLaVA, CLIP", "Gemma 3", "Qwen2.5-VL", "Qwen3-VL"])
@pytest.mark.parametrize("again", [False, True])
def test_compiled_layers_have_the_same_loss_and_gradients(family, again):
    model = build_reid(family).train()
    if again:
        model.activation_checkpointing_enable()
    expected, names = step(model), list(model.state_dict())
    assert compile_layers(model.language_model, backend="aot_eager") == 3
    got = step(model)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)
    counters = torch._dynamo.utils.counters
    # All layers share one graph, or one for each kind of attention, and no part of it runs uncompiled.
    assert 1 <= counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]
    assert list(model.state_dict()) == names


def test_a_layer_is_compiled_in_training_alone():
    model = build_reid("LLaVA, CLIP").eval()
    compile_layers(model.language_model, backend="aot_eager")
    with torch.inference_mode():
        model.encode_images(torch.zeros(2, 3, model.config.height, model.config.width))
    assert not torch._dynamo.utils.counters["stats"]


ADAPTERS = {
    "full": None,
    "lora": {"language_model": "lora", "tower": "full", "lora_dropout": 0.0},
    "frozen": {"language_model": "frozen", "tower": "full"},
    "4bit": {"language_model": "lora", "tower": "lora", "quantize": "4bit", "lora_dropout": 0.0},
    "8bit": {"language_model": "lora", "tower": "lora", "quantize": "8bit", "lora_dropout": 0.0},
}
needs_bits = pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs bitsandbytes")


@pytest.mark.parametrize(
    ("adapters", "settings"),
    [
        ("full", {}),
        pytest.param("full", {"bf16": True}, marks=pytest.mark.slow),
        pytest.param("full", {"activation_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(
            "full",
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
            marks=pytest.mark.slow,
        ),
        pytest.param("full", {"grad_cache_chunk": 3}, marks=pytest.mark.slow),
        ("lora", {"activation_checkpointing": True, "bf16": True}),
        pytest.param("lora", {"fused_lora": False}, marks=pytest.mark.slow),
        pytest.param("frozen", {"grad_cache_chunk": 3, "activation_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("4bit", {"activation_checkpointing": True}, marks=[needs_bits, pytest.mark.slow]),
        pytest.param("8bit", {}, marks=[needs_bits, pytest.mark.slow]),
    ],
)
def test_a_compiled_training_has_the_same_weights(train, adapters, settings, tmp_path):
    """Two steps, with diagnostics, an evaluation and a checkpoint after the first."""
    common = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.02, "eval_strategy": "steps", "eval_steps": 1}
    common |= {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": False, **settings}
    plain = train("plain", adapters=ADAPTERS[adapters], **common).trainer
    assert not torch._dynamo.utils.counters["stats"]
    compiled = train("compiled", adapters=ADAPTERS[adapters], torch_compile_backend="aot_eager", **common).trainer
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]
    assert not [module for module in compiled.model.modules() if "Optimized" in type(module).__name__]
    close = {"rtol": 0.02, "atol": 2e-4} if settings.get("bf16") else {"rtol": 1e-4, "atol": 1e-5}
    for (name, one), (_, other) in zip(plain.model.named_parameters(), compiled.model.named_parameters(), strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(other, one, msg=name, **close)
    files = {path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.safetensors")}
    assert len(files) >= 2
    for file in files:
        with safe_open(tmp_path / "plain" / file, "pt") as one, safe_open(tmp_path / "compiled" / file, "pt") as other:
            assert list(one.keys()) == list(other.keys())


def test_a_training_takes_the_attention_that_is_asked_for(train):
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.02}
    default, eager = train("default", **settings), train("eager", attn_implementation="eager", **settings)
    for trained, attention in ((default, "sdpa"), (eager, "eager")):
        model = trained.trainer.model
        for part in (model.language_model, model.tower):
            assert part.config._attn_implementation == attention
    for (name, one), other in zip(
        default.trainer.model.named_parameters(), eager.trainer.model.parameters(), strict=True
    ):
        torch.testing.assert_close(other, one, msg=name, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="^attn_implementation fast: .* not supported.*: correct it$"):
        train("fast", attn_implementation="fast", **settings)


def test_settings_of_torch_compile_are_checked_before_the_training(tmp_path):
    def checked(**settings):
        given = {"use_liger_kernel": False, "torch_compile": True, "torch_compile_backend": "inductor"}
        check_kernels(SimpleNamespace(**{**given, "torch_compile_mode": None, **settings}))

    checked()
    checked(torch_compile_mode="max-autotune-no-cudagraphs")
    with pytest.raises(UserError, match="^torch_compile_backend fast: give one of aot_eager, .*inductor"):
        checked(torch_compile_backend="fast")
    for wrong in (
        {"torch_compile_mode": "reduce-overhead"},
        {"torch_compile_mode": "default", "torch_compile_backend": "aot_eager"},
    ):
        with pytest.raises(UserError, match="^torch_compile_mode .*: give default or max-autotune-no-cudagraphs"):
            checked(**wrong)


def test_a_backend_that_fails_is_one_line():
    def backend(graph, inputs):
        raise RuntimeError("no compiler\nanywhere")

    model = build_reid("LLaVA, CLIP").train()
    compile_layers(model.language_model, backend=backend)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as stop:
        step(model)
    args = SimpleNamespace(torch_compile=True, torch_compile_backend="inductor")
    message = str(explain_error(stop.value, args, "64 x 32"))
    assert message.startswith("torch_compile: the backend inductor failed (") and "\n" not in message
    assert "no compiler anywhere" in message and "install a C++ compiler if it is missing" in message
    args.torch_compile = False
    assert explain_error(stop.value, args, "64 x 32") is None


def test_batches_of_many_lengths_need_few_graphs(train):
    settings = {"torch_compile_backend": "aot_eager", "max_steps": 12, "batch": {"instruction": "pool"}}
    train(identities_per_batch=8, images_per_identity=4, **settings)  # the texts run in two halves
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 < graphs <= 4 < torch._dynamo.config.recompile_limit


def test_kernels_need_a_language_model_that_no_engine_shards(monkeypatch):
    settings = {"torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": None}
    args = SimpleNamespace(use_liger_kernel=False, attn_implementation=None, **settings)
    with pytest.raises(UserError, match="^torch_compile: this encoder has no language model: leave it out$"):
        kernels.prepare_kernels(SimpleNamespace(args=args, model=torch.nn.Linear(1, 1)))
    monkeypatch.setattr(kernels, "sharding_of", lambda trainer: "FSDP")
    with pytest.raises(UserError, match="^torch_compile: not supported with FSDP: use DDP, or leave it out$"):
        kernels.prepare_kernels(SimpleNamespace(args=args, model=build_reid("LLaVA, CLIP")))
