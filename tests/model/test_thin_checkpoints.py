"""Thin checkpoints: their content, equal embeddings after every way of loading, LoRA in PEFT, and refusals."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from transformers import AutoModel, BitsAndBytesConfig, LlavaForConditionalGeneration
from without_package import run_without_package

from modeling_mllmreid.hub.export import write_export
from modeling_mllmreid.hub.publication import check_publishable
from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel, MllmReIDVisionModel
from modeling_mllmreid.model.backbone_loading import load_backbone
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.utils.errors import UserError

MODES = [("lora", "full"), ("lora", "lora"), ("lora", "frozen"), ("frozen", "full"), ("frozen", "lora")]


def stirred(model):
    """Changes every trained weight and statistic, so that a lost one is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
        for head in model.reid_head.values():
            head.bottleneck.running_mean.add_(0.1)
    return model.eval()


@pytest.fixture
def native(make_llava, tmp_path):
    """The backbone: a native LLaVA on disk that reads the last layer but one, like the published one."""
    make_llava(seed=5).save_pretrained(tmp_path / "native")
    return tmp_path / "native"


@pytest.fixture
def make_thin(native, tiny_processor):
    def make(language_model="lora", tower="full", *, quantize=None, dtype=torch.float32, **fields):
        args = AdapterArguments(language_model=language_model, tower=tower, lora_rank=4, quantize=quantize)
        size = {"height": 64, "width": 32, "image_prefix_ids": tiny_processor.image_prefix_ids, "num_identities": 4}
        torch.manual_seed(0)
        config = args.quantization_config(dtype)
        model = MllmReIDModel.from_mllm_pretrained(native, quantization_config=config, **{**size, **fields})
        prepare_training(model, args, backbone=str(native), revision=None, dtype=dtype)
        return model

    return make


def embeddings(model, batch):
    with torch.inference_mode():
        return model.eval().image_features(batch["pixel_values"])["concat"].cpu()


@pytest.mark.parametrize(("language_model", "tower"), MODES)
def test_save_and_load_in_each_mode(make_thin, make_batch, tmp_path, language_model, tower):
    model, batch = make_thin(language_model, tower), make_batch()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    in_tower = {name for name in trained if "vision_tower" in name}
    assert bool(in_tower) == (tower != "frozen") and all((".lora_" in name) == (tower == "lora") for name in in_tower)
    llm_weights = {name for name in trained if "language_model" in name or "lm_head" in name}
    assert bool(llm_weights) == (language_model == "lora") and all(".lora_" in name for name in llm_weights)
    assert {name for name in trained if "projector" in name} and type(model) is MllmReIDModel
    expected = embeddings(stirred(model), batch)
    model.save_pretrained(tmp_path / "thin")
    held = set(load_file(tmp_path / "thin/model.safetensors"))
    assert not [name for name in held if "language_model" in name or "lm_head" in name]
    assert bool([name for name in held if "vision_tower" in name]) == (tower == "full")
    assert (tmp_path / "thin/adapter/adapter_model.safetensors").is_file() == ("lora" in (language_model, tower))
    assert not (tmp_path / "thin/adapter_config.json").exists()
    loaded = AutoModel.from_pretrained(tmp_path / "thin")
    assert type(loaded) is MllmReIDModel and not loaded.training
    torch.testing.assert_close(embeddings(loaded, batch), expected, atol=1e-6, rtol=0)
    # Saved again from what was loaded: the same files.
    loaded.save_pretrained(tmp_path / "again")
    for path in sorted((tmp_path / "thin").rglob("*.safetensors")):
        first, second = load_file(path), load_file(tmp_path / "again" / path.relative_to(tmp_path / "thin"))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    # Its training goes on with the same weights as before.
    again = MllmReIDModel.from_pretrained(tmp_path / "thin", is_trainable=True)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(embeddings(merged, batch), expected, atol=1e-5, rtol=0)
    vision = MllmReIDVisionModel.from_reid_model(merged).eval()
    with torch.inference_mode():
        vision_features = vision.encode_images(batch["pixel_values"])
    torch.testing.assert_close(
        vision_features, merged.image_features(batch["pixel_values"])["vision"], atol=1e-6, rtol=0
    )
    merged.save_pretrained(tmp_path / "full")
    full = AutoModel.from_pretrained(tmp_path / "full")
    assert full.config.backbone is None and not [name for name in full.state_dict() if ".lora_" in name]
    torch.testing.assert_close(embeddings(full, batch), expected, atol=1e-5, rtol=0)


CLEAN_PROCESS = """
import sys
import torch
from transformers import AutoModel, BitsAndBytesConfig
folder, batch, out = sys.argv[1:]
pixels = torch.load(batch)
features = {}
for name, options in {
    "plain": {},
    "mapped": {"device_map": "auto"},
    "bf16": {"dtype": torch.bfloat16},
    "4bit": {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
}.items():
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()
    assert type(model).__name__ == "MllmReIDModel", type(model)
    kinds = {type(m).__name__ for m in model.mllm.model.language_model.modules()}
    assert ("Linear4bit" in str(kinds)) == (name == "4bit"), kinds
    assert not [n for n, m in model.named_modules() if "4bit" in type(m).__name__ and "language_model" not in n]
    with torch.inference_mode():
        features[name] = model.image_features(pixels)["concat"].cpu()
    assert features[name].dtype == torch.float32
torch.save(features, out)
"""


def test_one_line_loads_it_without_the_package_in_any_format(make_thin, make_batch, tmp_path):
    model, batch = stirred(make_thin("lora", "full")), make_batch()
    expected = embeddings(model, batch)
    model.save_pretrained(tmp_path / "thin")
    torch.save(batch["pixel_values"], tmp_path / "pixels.pt")
    run_without_package(CLEAN_PROCESS, *(tmp_path / n for n in ("thin", "pixels.pt", "out.pt")), folder=tmp_path)
    features = torch.load(tmp_path / "out.pt")
    for name in ("plain", "mapped"):
        torch.testing.assert_close(features[name], expected, atol=1e-6, rtol=0)
    assert (features["bf16"] - expected).abs().max() < 1e-2
    assert (features["4bit"] - expected).abs().max() > 1e-6 and torch.nn.functional.cosine_similarity(
        features["4bit"], expected
    ).min() > 0.9


def test_a_checkpoint_trained_in_4_bits_loads_in_4_bits_or_in_full_precision(make_thin, make_batch, tmp_path):
    model, batch = stirred(make_thin("lora", "full", quantize="4bit")), make_batch()
    expected = embeddings(model, batch)
    model.save_pretrained(tmp_path / "thin")
    assert "quantization" not in (tmp_path / "thin/config.json").read_text()
    four_bits = AdapterArguments(language_model="lora", quantize="4bit").quantization_config(torch.float32)
    again = AutoModel.from_pretrained(tmp_path / "thin", quantization_config=four_bits)
    torch.testing.assert_close(embeddings(again, batch), expected, atol=1e-5, rtol=0)
    whole = MllmReIDModel.from_pretrained(tmp_path / "thin")
    assert torch.nn.functional.cosine_similarity(embeddings(whole, batch), expected).min() > 0.9
    merged = embeddings(whole.merge_and_unload(), batch)
    torch.testing.assert_close(
        merged, embeddings(MllmReIDModel.from_pretrained(tmp_path / "thin"), batch), atol=1e-5, rtol=0
    )


def test_the_adapter_is_a_lora_of_the_native_llava_for_peft(make_thin, native, make_batch, tmp_path):
    from peft import PeftModel

    model, batch = stirred(make_thin("lora", "frozen")), make_batch()
    model.save_pretrained(tmp_path / "thin")
    llava = PeftModel.from_pretrained(
        LlavaForConditionalGeneration.from_pretrained(native), tmp_path / "thin", subfolder="adapter"
    )
    inputs = {name: batch[f"text_{name}"] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        torch.testing.assert_close(llava(**inputs).logits, model.mllm(**inputs).logits, atol=1e-5, rtol=0)


def test_a_full_checkpoint_of_ours_can_be_the_backbone(make_model, make_batch, tmp_path):
    make_model(num_identities=0).save_pretrained(tmp_path / "ours")
    model = MllmReIDModel.from_pretrained(tmp_path / "ours")
    args = AdapterArguments(language_model="lora", lora_rank=2)
    prepare_training(model, args, backbone=str(tmp_path / "ours"), revision=None, dtype=torch.float32)
    expected = embeddings(stirred(model), make_batch())
    model.save_pretrained(tmp_path / "thin")
    torch.testing.assert_close(
        embeddings(AutoModel.from_pretrained(tmp_path / "thin"), make_batch()), expected, atol=1e-6, rtol=0
    )


def test_frozen_weights_are_bfloat16_and_trained_weights_float32(make_thin, tmp_path):
    model = make_thin("lora", "full", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "thin")
    assert json.loads((tmp_path / "thin/config.json").read_text())["dtype"] == "bfloat16"
    loaded = MllmReIDModel.from_pretrained(tmp_path / "thin", is_trainable=True)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_thin_export_of_a_local_backbone_loads_here_and_is_not_pushed(make_thin, tiny_processor, tmp_path):
    write_export(make_thin(), tiny_processor, tmp_path / "export", to="thin", name="export")
    model = MllmReIDModel.from_pretrained(tmp_path / "export")
    assert model.config.backbone == str(tmp_path / "native") and model.config.num_identities == 0
    assert str(tmp_path) not in (tmp_path / "export" / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in (tmp_path / "export" / "README.md").read_text()
    with pytest.raises(UserError, match="its backbone .*native is a folder, which others do not have"):
        check_publishable(tmp_path / "export")


@pytest.fixture
def thin(make_thin, tmp_path):
    make_thin("lora", "full").save_pretrained(tmp_path / "thin")
    return tmp_path / "thin"


def test_a_backbone_that_is_missing_of_another_size_or_another_one(thin, native, make_llava, tiny_processor):
    from modeling_mllmreid.research.tiny_llava import build_tiny_llava

    shutil.rmtree(native)
    with pytest.raises(OSError, match=r"thin: its backbone .*native cannot be found .* get a full checkpoint"):
        MllmReIDModel.from_pretrained(thin)
    build_tiny_llava(tiny_processor, hidden_size=16, tower_layers=3, lm_layers=2, seed=0).save_pretrained(native)
    with pytest.raises(ValueError, match="is of another size: text_config.hidden_size is 16, not 32: give the right"):
        MllmReIDModel.from_pretrained(thin)
    make_llava(seed=6).save_pretrained(native)
    with pytest.raises(ValueError, match="has other weights than the backbone of the training: give that backbone"):
        MllmReIDModel.from_pretrained(thin)


def test_the_fingerprint_identifies_a_backbone_in_another_number_format(thin, native):
    llava = LlavaForConditionalGeneration.from_pretrained(native)
    llava.to(torch.float16).save_pretrained(native)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert MllmReIDModel.from_pretrained(thin, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("file", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_files_that_are_cut_off_lack_a_weight_or_are_of_another_model(thin, file):
    content = (thin / file).read_bytes()
    whole = load(content)
    (thin / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a .safetensors file is cut off or broken .*: get it again"):
        MllmReIDModel.from_pretrained(thin)
    first = next(iter(whole))
    save_file({name: weight for name, weight in whole.items() if name != first}, thin / file)
    with pytest.raises(ValueError, match="is missing: it is another model's or not whole"):
        MllmReIDModel.from_pretrained(thin)
    save_file({**whole, first: torch.zeros(3)}, thin / file)
    with pytest.raises(ValueError, match=r"is \(3,\) and the model's .*: it is another model's|r is 4 .* is \(3,\)"):
        MllmReIDModel.from_pretrained(thin)


def test_4_bits_without_bitsandbytes(thin, make_thin, monkeypatch):
    four_bits = BitsAndBytesConfig(load_in_4bit=True)
    for module in ("transformers.utils", "transformers.utils.import_utils"):
        monkeypatch.setattr(f"{module}.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match="4-bit and 8-bit weights need bitsandbytes: pip install bitsandbytes, or"):
        MllmReIDModel.from_pretrained(thin, quantization_config=four_bits)
    with pytest.raises(UserError, match="quantize 4bit: needs bitsandbytes: pip install bitsandbytes, or leave it out"):
        make_thin("lora", "full", quantize="4bit")


@pytest.mark.parametrize("form", ["thin", "full"])
def test_pickled_weights_are_not_loaded(thin, make_model, tmp_path, form):
    folder = thin
    if form == "full":
        folder = tmp_path / "full"
        make_model().save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle, which can run code .*convert it with"):
        MllmReIDModel.from_pretrained(folder)


def test_quantised_weights_take_no_lora_in_and_only_the_language_model_is_quantised(make_thin, native):
    model = make_thin("lora", "full", quantize="8bit")
    assert {type(m).__name__ for m in model.mllm.model.vision_tower.modules()} & {"Linear8bitLt", "Linear4bit"} == set()
    with pytest.raises(ValueError, match="is quantised and cannot take the LoRA in: load the model without"):
        model.merge_and_unload()
    too_much = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"multi_modal_projector.linear_1 is quantised: leave llm_int8_skip"):
        MllmReIDModel.from_mllm_pretrained(native, quantization_config=too_much, height=64, width=32)


def rewrite_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def lora(make_thin, tmp_path):
    make_thin("lora", "lora").save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_the_adapter_lists_its_modules_and_a_regular_expression_is_never_run(lora, make_batch):
    settings = lora / "adapter/adapter_config.json"
    names = json.loads(settings.read_text())["target_modules"]
    assert "model.language_model.layers.1.mlp.down_proj" in names and len(names) == 2 * 7 + 3 * 6
    expected = embeddings(MllmReIDModel.from_pretrained(lora), make_batch())
    # A pattern of earlier checkpoints, and a pattern that runs forever.
    for pattern in (r".*language_model\.layers\.\d+\..*_proj", "(a*)*(m.*)*(o.*)*(d.*)*(e.*)*(l.*)*(.*)*x"):
        rewrite_json(settings, target_modules=pattern)
        assert torch.equal(embeddings(MllmReIDModel.from_pretrained(lora), make_batch()), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r is 0; it must be a whole number, 1 or more"),
        ({"r": "4"}, "r is '4'; it must be a whole number"),
        ({"r": 10**9}, r"r is 1000000000 and the matrix .* is \(4, "),
        ({"lora_alpha": None}, "lora_alpha is None; it must be a finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a finite number"),
        ({"lora_dropout": 1}, "lora_dropout is 1; it must be from 0 to below 1"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; it must be true or false"),
        ({"bias": "all"}, "bias is 'all'; it must be 'none'"),
        ({"target_modules": 3}, "target_modules is 3; it must be a list of names"),
        ({"target_modules": [[]]}, r"target_modules is \[\[\]\]; it must be a list of names"),
        ({"use_dora": True}, "use_dora is True; only plain LoRA is loaded"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern is .*; only plain LoRA is loaded"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only plain LoRA is loaded"),
    ],
)
def test_foreign_adapter_settings(lora, fields, message):
    rewrite_json(lora / "adapter/adapter_config.json", **fields)
    with pytest.raises(ValueError, match=f"lora: adapter/adapter_config.json: {message}"):
        MllmReIDModel.from_pretrained(lora)


def test_foreign_adapter_files(lora):
    weights = load_file(lora / "adapter/adapter_model.safetensors")
    module = next(iter(weights)).split(".lora_")[0]

    def refused(message, change):
        save_file(change, lora / "adapter/adapter_model.safetensors")
        with pytest.raises(ValueError, match=message):
            MllmReIDModel.from_pretrained(lora)

    refused("is missing: it is another", {name: w for name, w in weights.items() if not name.startswith(module)})
    refused("x is no matrix of a LoRA", {**weights, "x": torch.zeros(1)})
    refused("lora_A.weight is not finite", {n: w * float("nan") if "lora_A" in n else w for n, w in weights.items()})
    torch.save(weights, lora / "adapter/adapter_model.bin")
    (lora / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="adapter/adapter_model.bin is a pickle, which can run code"):
        MllmReIDModel.from_pretrained(lora)
    rewrite_json(lora / "config.json", adapter=None)
    with pytest.raises(ValueError, match="config.json names no adapter, but there is one: get it again"):
        MllmReIDModel.from_pretrained(lora)


def test_a_checkpoint_without_adapter_leaves_none_of_an_older_one_in_its_folder(lora, make_thin, make_batch):
    model = make_thin("frozen", "full")
    model.save_pretrained(lora)
    assert not list((lora / "adapter").iterdir())
    loaded = MllmReIDModel.from_pretrained(lora)
    torch.testing.assert_close(embeddings(loaded, make_batch()), embeddings(model, make_batch()), atol=1e-6, rtol=0)


def test_a_head_that_the_thin_checkpoint_lacks_may_be_new_and_is_trained(make_thin, tmp_path):
    make_thin("lora", "full", reid_on="llm").save_pretrained(tmp_path / "thin")
    model, info = MllmReIDModel.from_pretrained(
        tmp_path / "thin", reid_on="both", is_trainable=True, output_loading_info=True
    )
    assert {name.split(".")[1] for name in info["missing_keys"]} == {"vision"}
    assert all(parameter.requires_grad for parameter in model.reid_head["vision"].parameters())
    with pytest.raises(ValueError, match=r"classifier.weight is \(4, 32\) and the model's \(5, 32\)"):
        MllmReIDModel.from_pretrained(tmp_path / "thin", num_identities=5)
    weights = load_file(tmp_path / "thin/model.safetensors")
    name = "reid_head.llm.bottleneck.running_var"
    save_file({**weights, name: -weights[name]}, tmp_path / "thin/model.safetensors")
    with pytest.raises(ValueError, match=f"the weight {name} is -1, below 0"):
        MllmReIDModel.from_pretrained(tmp_path / "thin")


def test_a_backbone_that_is_pickled_lacks_a_weight_or_has_nan(thin, native):
    file = native / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if "q_proj" in name)
    save_file({key: value for key, value in whole.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="native: 1 weights are missing, .*q_proj"):
        MllmReIDModel.from_pretrained(thin)
    save_file({**whole, name: whole[name] * float("nan")}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="native: the weight .*q_proj.* is not finite"):
        MllmReIDModel.from_pretrained(thin)
    file.unlink()
    torch.save(whole, native / "pytorch_model.bin")
    with pytest.raises(ValueError, match="native: pytorch_model.bin is a pickle"):
        MllmReIDModel.from_pretrained(thin)


def test_a_backbone_that_is_thin_itself_or_a_folder_that_the_hub_names(thin):
    rewrite_json(thin / "config.json", backbone=str(thin))
    with pytest.raises(ValueError, match="thin is a thin checkpoint itself, which names another backbone: get a full"):
        MllmReIDModel.from_pretrained(thin)
    config = MllmReIDConfig.from_pretrained(thin)
    with pytest.raises(ValueError, match="is a folder, which a checkpoint on the Hub cannot name: get a full"):
        load_backbone(MllmReIDModel, config, {}, "owner/model")
