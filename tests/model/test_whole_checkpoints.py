"""Full, vision and native checkpoints load completely, finite and from safetensors, or are refused in one line."""

import copy
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel
from modeling_mllmreid.model.weights import check_finite

LOADERS = {
    "full": MllmReIDModel.from_pretrained,
    "vision": MllmReIDVisionModel.from_pretrained,
    "native": partial(MllmReIDModel.from_mllm_pretrained, height=64, width=32),
}


@pytest.fixture
def save(make_model, make_llava, tmp_path):
    """save(form) -> a new folder with a checkpoint of it."""

    def saved(form: str, **fields):
        folder = tmp_path / form
        if form == "native":
            make_llava().save_pretrained(folder)
        else:
            model = make_model(**fields)
            (MllmReIDVisionModel.from_reid_model(model) if form == "vision" else model).save_pretrained(folder)
        return folder

    return saved


def rewrite(folder, change) -> None:
    """Puts `change(weights)` in place of a checkpoint's weights."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def rewrite_json(path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("form", "name", "shown"),
    [
        ("full", "reid_head.llm.bottleneck.running_var", None),
        ("full", "reid_head.vision.bottleneck.num_batches_tracked", None),
        ("full", "reid_head.llm.classifier.weight", None),
        ("full", "mllm.lm_head.weight", None),
        ("vision", "reid_head.bottleneck.running_mean", None),
        ("vision", "tower.encoder.layers.0.self_attn.q_proj.weight", None),
        ("native", "language_model.lm_head.weight", "lm_head.weight"),
        ("native", "multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("native", "vision_tower.embeddings.class_embedding", "model.vision_tower.embeddings.class_embedding"),
        ("native", "language_model.model.norm.weight", "model.language_model.norm.weight"),
    ],
)
def test_no_weight_is_random_not_finite_or_of_another_size(save, form, name, shown):
    folder, load, shown = save(form), LOADERS[form], shown or name
    whole = load_file(folder / "model.safetensors")
    rewrite(folder, lambda weights: {key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=f"{form}: 1 weights are missing, {shown} first: get it again"):
        load(folder)
    rewrite(folder, lambda _: {**whole, name: torch.zeros(7)})
    for options in [{}, {"ignore_mismatched_sizes": True}] if form != "native" else [{}]:
        with pytest.raises(
            ValueError, match=rf"the weight {shown} is \(7,\) and the model's .*: it is another model's"
        ):
            load(folder, **options)
    for number in ("nan", "inf"):
        if whole[name].is_floating_point():
            rewrite(folder, lambda _, number=number: {**whole, name: whole[name].fill_(float(number))})
            with pytest.raises(ValueError, match=f"{form}: the weight {shown} is not finite in torch.float32"):
                load(folder)


@pytest.mark.parametrize("form", LOADERS)
def test_whole_numbers_are_no_weights(save, form):
    folder = save(form)
    name = next(key for key, value in load_file(folder / "model.safetensors").items() if value.dim() == 2)
    rewrite(folder, lambda weights: {**weights, name: weights[name].to(torch.int32)})
    with pytest.raises(ValueError, match=f"{name} holds whole numbers, which no weight does: get it again"):
        LOADERS[form](folder)


def test_a_running_variance_below_zero_and_numbers_too_large_for_a_format(save):
    folder = save("vision")
    rewrite(folder, lambda weights: {**weights, "tower.embeddings.class_embedding": torch.full((32,), 1e6)})
    MllmReIDVisionModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="class_embedding is not finite in torch.float16"):
        MllmReIDVisionModel.from_pretrained(folder, dtype=torch.float16)
    name = "reid_head.bottleneck.running_var"
    rewrite(folder, lambda weights: {**weights, name: -weights[name]})
    with pytest.raises(ValueError, match=f"the weight {name} is -1, below 0"):
        MllmReIDVisionModel.from_pretrained(folder)


def test_weights_outside_of_memory_are_not_checked():
    weights = {"offloaded": torch.empty(3, device="meta"), "partitioned": torch.empty(0), "ids": torch.tensor([1])}
    check_finite(weights, "here")


@pytest.mark.parametrize("quantize", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_a_weight_that_is_quantised_while_it_is_loaded(save, quantize):
    folder, name = save("full"), "mllm.model.language_model.layers.0.self_attn.q_proj.weight"
    MllmReIDModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**quantize))
    rewrite(folder, lambda weights: {**weights, name: weights[name] * float("nan")})
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj.weight is not finite in torch.float32"):
        # Read from the file: on a GPU NaN is quantised to a number, which nothing in the model shows.
        MllmReIDModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**quantize))


def test_only_what_the_checkpoints_own_configuration_lacks_may_be_new(save):
    folder = save("full", reid_on="llm", bnneck=False, num_identities=0)
    changed, info = MllmReIDModel.from_pretrained(
        folder, reid_on="both", bnneck=True, num_identities=5, output_loading_info=True
    )
    parts = {name.rsplit(".", 1)[0] for name in info["missing_keys"]}
    assert parts == {f"reid_head.{head}.{part}" for head in ("llm", "vision") for part in ("bottleneck", "classifier")}
    assert torch.equal(changed.reid_head["vision"].bottleneck.running_var, torch.ones(32))
    assert 0 < changed.reid_head["llm"].classifier.weight.std() < 0.01
    changed.save_pretrained(folder)
    back = MllmReIDModel.from_pretrained(folder, reid_on="llm", num_identities=0)
    assert list(back.reid_head) == ["llm"] and back.reid_head["llm"].classifier is None
    with pytest.raises(ValueError, match=r"classifier.weight is \(5, 32\) and the model's \(6, 32\)"):
        MllmReIDModel.from_pretrained(folder, num_identities=6)
    # A classifier that config.json does not have, and a head that was removed from the configuration.
    rewrite_json(folder / "config.json", num_identities=0)
    with pytest.raises(ValueError, match="the weight reid_head.llm.classifier.weight is not part of this model"):
        MllmReIDModel.from_pretrained(folder)


def test_device_maps_and_shards(save, make_model, tmp_path):
    for form in ("full", "vision"):
        model, info = LOADERS[form](save(form), device_map="auto", output_loading_info=True)
        assert not info["missing_keys"] and not any(weight.is_meta for weight in model.parameters())
    make_model().save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    again = MllmReIDModel.from_pretrained(tmp_path / "sharded").state_dict()
    assert all(torch.equal(again[name], value) for name, value in make_model().state_dict().items())


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "{root}/outside.safetensors", "a/b.safetensors", "x.bin", 3]
)
def test_shards_must_be_in_the_checkpoints_folder(make_model, tmp_path, place):
    folder = tmp_path / "sharded"
    make_model().save_pretrained(folder, max_shard_size="50KB")
    index = folder / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    first = next(iter(files.values()))
    shutil.copy(folder / first, tmp_path / "outside.safetensors")
    place = place.format(root=tmp_path) if isinstance(place, str) else place
    rewrite_json(index, weight_map={name: place if file == first else file for name, file in files.items()})
    with pytest.raises(ValueError, match="weight_map in model.safetensors.index.json has .*: no file of its folder"):
        MllmReIDModel.from_pretrained(folder)


def test_a_download_without_all_shards_is_one_line(make_model, tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="50KB")
    last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    last.unlink()
    message = f"^{tmp_path}: {last.name}, which model.safetensors.index.json names, is missing: get it again$"
    with pytest.raises(ValueError, match=message):
        MllmReIDModel.from_pretrained(tmp_path)


def test_tied_weights_of_another_model_are_one_line_with_a_remedy(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    names = [name for name in weights if "embed_tokens" in name or "lm_head" in name]
    weights |= {name: torch.cat([weights[name]] * 2) for name in names}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    of_mllm = config["mllm_config"]
    of_mllm["tie_word_embeddings"] = of_mllm["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded .*: get its config.json and its weights from one checkpo"):
        MllmReIDModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("form", LOADERS)
def test_safetensors_alone(save, form):
    folder, load = save(form), LOADERS[form]
    if form != "native":
        with pytest.raises(ValueError, match="weights are read from safetensors alone: leave out use_safetensors"):
            load(folder, use_safetensors=False)
    rewrite_json(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(ValueError, match="transformers_weights in config.json names a file of weights: remove it"):
        load(folder)
    rewrite_json(folder / "config.json", transformers_weights=None)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter_config.json makes it a LoRA of PEFT: merge the LoRA into"):
        load(folder)
    (folder / "adapter_config.json").unlink()
    load(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match="pytorch_model.bin is a pickle, which can run code when it is read: not loaded"
    ):
        load(folder)


@pytest.mark.parametrize("form", LOADERS)
def test_invalid_fields_of_config_json_are_refused(save, form):
    folder, load = save(form), LOADERS[form]
    good = json.loads((folder / "config.json").read_text())
    for content, message in [
        ("[1]", "config.json holds a list, not an object"),
        ("{", "config.json is not JSON"),
        ("[" * 100_000, "config.json is not JSON"),
        (b"\xff", "config.json is not JSON"),
    ]:
        (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=f"^.*{form}: {message}.*: get it again$"):
            load(folder)
    # Each of these was an AttributeError or a TypeError inside transformers, the last code from the Hub.
    for fields in [
        {"dtype": "foo"},
        {"quantization_config": 3},
        {"to_dict": 3},
        {"id2label": 3},
        {"num_labels": "x"},
        {"vision_config": 3},
        {"attn_implementation": "owner/kernel"},
        {"vision_config": {"model_type": "clip_vision_model", "_attn_implementation": "owner/kernel"}},
        {"model_type": "bert"},
    ]:
        (folder / "config.json").write_text(json.dumps({**good, **fields}))
        with pytest.raises(ValueError, match="bert" if "model_type" in fields else next(iter(fields))) as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_our_own_code_never_runs_a_checkpoints(save, tiny_processor):
    folder = save("native")
    tiny_processor.tokenizer.save_pretrained(folder)
    tiny_processor.image_processor.save_pretrained(folder)
    (folder / "evil.py").write_text("raise SystemExit('it ran')\nclass Evil: pass\n")
    entries = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText")}
    rewrite_json(folder / "config.json", auto_map=entries, model_type="evil")
    with pytest.raises(ValueError, match="contains custom code|trust_remote_code"):
        LOADERS["native"](folder)
    with pytest.raises(ValueError, match="contains custom code|trust_remote_code"):
        type(tiny_processor).from_mllm_pretrained(folder, height=64, width=32)
    with pytest.raises(ValueError, match="contains custom code|trust_remote_code"):
        AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)


def test_the_auto_class_loads_as_strictly(save):
    folder = save("vision")
    rewrite(folder, lambda weights: {key: value for key, value in weights.items() if "running_mean" not in key})
    with pytest.raises(ValueError, match=r"1 weights are missing, reid_head.bottleneck.running_mean first"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("form", LOADERS)
def test_a_configuration_of_more_than_the_weights_takes_no_memory(save, form):
    folder, load = save(form), LOADERS[form]
    good = json.loads((folder / "config.json").read_text())
    for part, fields in [
        ("vision_config", {"hidden_size": 10**6}),
        ("vision_config", {"num_hidden_layers": 10**9}),
        ("vision_config", {"image_size": 10**9}),
        ("text_config", {"vocab_size": 10**9}),
        ("text_config", {"intermediate_size": 10**10}),
        ("text_config", {"num_key_value_heads": 10**9}),
    ]:
        content = copy.deepcopy(good)
        holder = content.get("mllm_config", content)
        if part in holder:
            holder[part] |= fields
            (folder / "config.json").write_text(json.dumps(content))
            with pytest.raises(
                ValueError, match=rf"config.json describes a model larger than its weights \(.*{next(iter(fields))[:6]}"
            ):
                load(folder)


def test_a_number_of_heads_that_no_model_has(save):
    folder = save("full")
    config = json.loads((folder / "config.json").read_text())
    config["mllm_config"]["vision_config"]["num_attention_heads"] = -1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="describes a model without weights .num_attention_heads -1"):
        MllmReIDModel.from_pretrained(folder)


def test_more_identities_than_the_weights_have_are_refused(save):
    folder = save("full")
    rewrite_json(folder / "config.json", num_identities=10**10)
    with pytest.raises(ValueError, match="describes a model larger than its weights .num_identities 10000000000"):
        MllmReIDModel.from_pretrained(folder)


def test_a_full_checkpoint_that_is_cut_off_or_lacks_a_weight(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "full")
    file = tmp_path / "full/model.safetensors"
    content = file.read_bytes()
    whole = load(content)
    file.write_bytes(content[:-1000])
    with pytest.raises(ValueError, match="is cut off or broken"):
        MllmReIDModel.from_pretrained(tmp_path / "full")
    name = "mllm.model.multi_modal_projector.linear_1.weight"
    save_file({key: value for key, value in whole.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing, {name} first: get it again"):
        MllmReIDModel.from_pretrained(tmp_path / "full")


@pytest.mark.parametrize("form", LOADERS)
def test_threads_that_load_at_once_leave_transformers_as_it_was(form, save, monkeypatch):
    folder = save(form)
    names = ("tie_weights", "init_weights", "_initialize_weights")
    before = {name: getattr(PreTrainedModel, name) for name in names}
    init = PreTrainedModel.__init__

    def slow(self, *arguments, **options):
        time.sleep(0.1)
        init(self, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "__init__", slow)
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(LOADERS[form], [folder] * 3))
    assert {name: getattr(PreTrainedModel, name) for name in names} == before
    first, *others = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
