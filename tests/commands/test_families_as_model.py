"""A native model of another family as `--model`: dry run, LoRA, 4 bits, evaluation, embedding, export."""

import copy
import json

import numpy as np
import pytest
import torch
from chat_models import write_chat_model
from families import CONFIGS
from transformers import AutoTokenizer
from transformers.utils.import_utils import is_bitsandbytes_available

from modeling_mllmreid.commands import embed, evaluate, export, train
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor, MllmReIDVisionModel
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.retrieval.embeddings import load_embeddings
from modeling_mllmreid.training import memory
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError

QUANTIZED = pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs bitsandbytes")


@pytest.mark.parametrize(
    ("family", "tower", "quantize"),
    [
        ("SmolVLM", "full", None),
        ("InternVL", "lora", None),
        ("Gemma 3", "frozen", None),
        pytest.param("Qwen3-VL", "lora", "4bit", marks=QUANTIZED),
    ],
)
def test_every_command_takes_the_family(family, tower, quantize, disk, tmp_path, capsys):
    native, run = tmp_path / "native", tmp_path / "run"
    write_chat_model(native, family)
    data = ["--dataset", "market1501", "--data_dir", str(disk.people)]
    flags = ["--model", str(native), *data, "--captions_file", str(disk.people / "reid_raw.json")]
    flags += ["--target", "caption", "--language_model", "lora", "--tower", tower, "--lora_rank", "2"]
    flags += [] if quantize is None else ["--quantize", quantize]
    flags += [
        "--identities_per_batch",
        "2",
        "--images_per_identity",
        "2",
        "--use_cpu",
        "true",
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
    ]
    flags += ["--output_dir", str(run), "--eval_strategy", "no", "--save_strategy", "no"]
    train.main([*flags, "--dry_run", "true"])
    assert "image tokens" in (printed := capsys.readouterr().out) and "total" in printed and not run.exists()
    train.main(flags)
    assert (run / "adapter/adapter_model.safetensors").is_file()
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    assert {"lm_image", "lm_text", "id_llm", "triplet_vision"} <= {name for entry in log for name in entry}

    evaluate.main(["--model", str(run), *data, "--output_dir", str(tmp_path / "metrics")])
    assert {"llm", "vision", "concat"} <= json.loads((tmp_path / "metrics/metrics.json").read_text())["metrics"].keys()
    embed.main(["--model", str(run), "--images", str(disk.people / "query"), "--output", str(tmp_path / "embedded")])
    features = load_embeddings(tmp_path / "embedded").features
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)

    export.main(["--model", str(run), "--to", "vision", "--output", str(tmp_path / "vision")])
    export.main(["--model", str(run), "--to", "full", "--output", str(tmp_path / "full")])
    full = MllmReIDModel.from_pretrained(tmp_path / "full").eval()
    form = MllmReIDVisionModel.from_pretrained(tmp_path / "vision").eval()
    pixels = torch.randn(2, 3, full.config.height, full.config.width)
    with torch.inference_mode():
        expected = full.image_features(pixels, ("vision",))["vision"]
        torch.testing.assert_close(form.encode_images(pixels), expected, rtol=0, atol=1e-5)


def test_the_processor_of_another_family_is_refused(tmp_path):
    processors = {}
    for family in ("SmolVLM", "Qwen3-VL", "LLaVA, CLIP"):
        folder = tmp_path / family
        write_chat_model(folder, family)
        _, processors[family] = load_model(ModelArguments(str(folder)))
    model, processor = load_model(ModelArguments(str(tmp_path / "SmolVLM")))
    for other in (processors["Qwen3-VL"], processors["LLaVA, CLIP"]):
        model.save_pretrained(tmp_path / "ours")
        other.save_pretrained(tmp_path / "ours")
        with pytest.raises(UserError, match="its processor is another model's") as error:
            load_model(ModelArguments(str(tmp_path / "ours")))
        assert "get the processor's files of the same checkpoint" in str(error.value) and "\n" not in str(error.value)
    processor.save_pretrained(tmp_path / "ours")
    assert load_model(ModelArguments(str(tmp_path / "ours")))[0].config.num_image_tokens == 50


@pytest.mark.parametrize(
    ("family", "part", "field", "value", "message"),
    [
        ("SmolVLM", None, "scale_factor", 0, "make image tokens of 0 pixels a side: config.json"),
        ("Gemma 3", None, "mm_tokens_per_image", -4, "make image tokens of None pixels a side: config.json"),
        ("InternVL", "vision_config", "patch_size", [7, 14], r"patch_size is \[7, 14\]; give a whole number"),
        ("Qwen3-VL", "vision_config", "patch_size", -16, "patch_size is -16; give a whole number"),
        ("InternVL", None, "vision_feature_layer", [1, 2], r"layer is \[1, 2\]; give one layer, a whole number"),
        # Only building the model, or running it, shows these.
        ("LLaVA, CLIP", "text_config", "hidden_size", -8, "RuntimeError: Trying to create tensor with negative"),
        ("Qwen3-VL", "vision_config", "out_hidden_size", 48, "RuntimeError: Sizes of tensors must match"),
    ],
)
def test_sizes_in_config_json_that_make_no_model(family, part, field, value, message, disk, tmp_path):
    fields = copy.deepcopy(CONFIGS[family])
    (fields if part is None else fields[part])[field] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--loss_lambda", "1", "--use_cpu", "true"]
    with pytest.raises(UserError, match=f"^model {tmp_path}: .*{message}") as error:
        train.main(["--model", str(tmp_path), *data, "--dry_run", "true", "--output_dir", str(tmp_path / "run")])
    assert "\n" not in str(error.value)
    if "pixels" in message or "patch_size" in message:
        with pytest.raises(ValueError, match=message):
            MllmReIDProcessor.from_mllm_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("family", "part", "field", "value", "message"),
    [
        # Only embedding shows those of the first message: the weights do not depend on these numbers.
        ("Qwen2.5-VL", "vision_config", "window_size", 0, "cannot embed a crop (ZeroDivisionError: "),
        ("Qwen3-VL", "vision_config", "num_heads", 7, "cannot embed a crop (RuntimeError: shape "),
        ("Qwen2.5-VL", "text_config", "rope_parameters", None, "cannot embed a crop (RuntimeError: split_with_sizes "),
        ("Gemma 3", "text_config", "query_pre_attn_scalar", -1, "cannot embed a crop (TypeError: "),
        ("Qwen2.5-VL", "vision_config", "fullatt_block_indexes", [99], "holds 99; give blocks from 0 to 2"),
        ("Qwen3-VL", "vision_config", "deepstack_visual_indexes", [0, -1], "holds -1; give blocks from 0 to 2"),
        ("Gemma 3", None, "mm_tokens_per_image", 5, "make image tokens of None pixels a side"),
        ("Gemma 3", "text_config", "sliding_window", 0, "sliding_window is 0, which no configuration may hold"),
        (
            "SmolVLM",
            "vision_config",
            "num_attention_heads",
            -1,
            "describes a model without weights (num_attention_heads -1)",
        ),
        ("SmolVLM", "vision_config", "layer_norm_eps", float("nan"), "layer_norm_eps is nan, which no configuration"),
    ],
)
def test_numbers_in_config_json_that_cannot_embed(family, part, field, value, message, disk, tmp_path):
    write_chat_model(tmp_path / "model", family)
    fields = json.loads((tmp_path / "model/config.json").read_text())
    within = fields if part is None else fields[part]
    within[field] = value
    if value is None:
        del within[field]
    (tmp_path / "model/config.json").write_text(json.dumps(fields))
    images, output = str(disk.people / "query"), tmp_path / "embedded"
    with pytest.raises(UserError) as error:
        embed.main(["--model", str(tmp_path / "model"), "--images", images, "--output", str(output)])
    assert message in str(error.value) and "\n" not in str(error.value) and not output.exists()


def test_a_dry_run_blames_config_json_for_its_own_faults_alone(disk, tmp_path, monkeypatch):
    write_chat_model(tmp_path / "model", "Qwen3-VL")
    flags = ["--model", str(tmp_path / "model"), "--dataset", "market1501", "--data_dir", str(disk.people)]

    def fail(*args, **kwargs):
        raise ValueError("a fault of the estimate")

    monkeypatch.setattr(memory, "optimizer_state_bytes", fail)
    with pytest.raises(ValueError, match=r"^a fault of the estimate$") as error:
        train.main([*flags, "--use_cpu", "true", "--dry_run", "true", "--output_dir", str(tmp_path / "run")])
    assert not isinstance(error.value, UserError)


def test_the_towers_class_counts_and_not_the_type_that_its_configuration_names(tmp_path):
    write_chat_model(tmp_path, "Qwen3-VL")
    expected, processor = load_model(ModelArguments(str(tmp_path)))
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["vision_config"]["model_type"] = "dinov2"  # transformers ignores it
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model, _ = load_model(ModelArguments(str(tmp_path)))
    pixels = torch.randn(1, 3, processor.height, processor.width)
    with torch.inference_mode():
        assert torch.equal(model.eval().encode_images(pixels), expected.eval().encode_images(pixels))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(disk, tmp_path):
    write_chat_model(tmp_path, "Qwen3-VL")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"word{index}" for index in range(9)])  # the model has embeddings for three of them
    tokenizer.save_pretrained(tmp_path)
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="tokenizer.json has the token 'word3' of id .*, and config.json a vocab_size"):
        train.main(["--model", str(tmp_path), *data, "--target", "caption", "--use_cpu", "true"])
    assert not (tmp_path / "run").exists()
