"""`compose`: a native LLaVA out of any tower and language model, loaded again by plain transformers."""

import json
import shutil

import pytest
import torch
from halves import write_language_model, write_tower
from huggingface_hub import metadata_load
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from modeling_mllmreid.commands import compose
from modeling_mllmreid.data.licences import licence_of
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.utils import outputs
from modeling_mllmreid.utils.errors import UserError

# Each tower, and the tokens that it puts in front of its patches.
TOWERS = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_with_registers": 5, "vit": 1}
LANGUAGE_MODELS = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {"tie_word_embeddings": True},
    # Spare rows of the embeddings have room for the image token.
    "gemma3_text": {"tie_word_embeddings": True, "vocab_size": 512},
}
PAIRS = [(tower, "llama") for tower in TOWERS] + [("clip", name) for name in LANGUAGE_MODELS if name != "llama"]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """half(kind): the folder of a tiny random tower or language model."""
    root = tmp_path_factory.mktemp("halves")

    def half(kind, **fields):
        folder = root / "-".join([kind, *map(str, fields.values())])
        if not folder.exists():
            if kind in LANGUAGE_MODELS:
                write_language_model(folder, kind, **{**LANGUAGE_MODELS[kind], **fields})
            else:
                write_tower(folder, kind, **fields)
        return folder

    return half


def composed(tower, language_model, output, *flags):
    compose.main(["--tower", str(tower), "--language_model", str(language_model), "--output", str(output), *flags])
    return LlavaForConditionalGeneration.from_pretrained(output).eval()


@pytest.mark.parametrize(("tower", "language_model"), PAIRS)
@torch.inference_mode()
def test_a_composed_llava_runs_in_transformers_and_keeps_both_halves(tower, language_model, halves, tmp_path):
    llava = composed(halves(tower), halves(language_model), tmp_path / "llava")
    language = AutoModelForCausalLM.from_pretrained(halves(language_model)).eval()
    ids = torch.arange(3, 20)[None]
    logits = llava(input_ids=ids).logits
    vocabulary = language.config.vocab_size
    torch.testing.assert_close(logits[..., :vocabulary], language(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    embeddings = llava.get_input_embeddings().weight
    assert (llava.lm_head.weight is embeddings) == LANGUAGE_MODELS[language_model]["tie_word_embeddings"]

    # New rows are near the mean of the others, so that they are no outliers among the logits.
    size = vocabulary if vocabulary == 512 else -(-(vocabulary + 1) // 64) * 64
    assert llava.config.text_config.vocab_size == len(embeddings) == size
    old, new = embeddings[:vocabulary], embeddings[vocabulary:]
    assert (new - old.mean(dim=0)).abs().max() < old.std() / 10 if len(new) else vocabulary == 512

    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    inputs = processor(images=Image.new("RGB", (40, 80)), text="<image> coat", return_tensors="pt")
    assert int((inputs["input_ids"] == llava.config.image_token_id).sum()) == 16 + max(TOWERS[tower] - 1, 0)
    states = llava.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    source = AutoModel.from_pretrained(halves(tower)).eval()
    source = getattr(source, "vision_model", source)
    expected = source(pixel_values=inputs["pixel_values"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(states, expected)
    features = states[-2][:, 1:] if TOWERS[tower] else states[-2]
    image = llava.model.multi_modal_projector(features)
    got = llava.model.get_image_features(inputs["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.stack(list(got)), image)
    assert llava(**inputs).logits.isfinite().all()
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]

    # Our model starts from it: the same image, also in tall crops.
    model = MllmReIDModel.from_mllm_pretrained(tmp_path / "llava", height=32, width=32).eval()
    embeddings = model.project_image(model.run_tower(inputs["pixel_values"])).embeddings
    torch.testing.assert_close(embeddings, image)
    size = {"height": 48, "width": 24}
    reid_processor = MllmReIDProcessor.from_mllm_pretrained(tmp_path / "llava", **size)
    prefix = reid_processor.image_prefix_ids
    # transformers reads a tokenizer of Qwen2 by its own rules for words.
    assert reid_processor.tokenizer.decode(prefix) == ("<s>" if language_model == "qwen2" else "<s> user")
    model = MllmReIDModel.from_mllm_pretrained(tmp_path / "llava", image_prefix_ids=prefix, **size).eval()
    tokens = 18 + max(TOWERS[tower] - 1, 0)
    assert model.config.num_image_tokens == reid_processor.num_image_tokens == tokens
    crops = reid_processor(images=[Image.new("RGB", (40, 80), color) for color in ("red", "blue")])["pixel_values"]
    assert model.encode_images(crops).isfinite().all()
    prompt = torch.tensor([reid_processor.image_prompt_ids()] * 2)
    assert model.generate(prompt, crops, max_new_tokens=2).shape[0] == 2

    # The chat template of the language model takes the image token as text.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llava")
    message = [{"role": "user", "content": "<image>coat"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<s>user\n<image>coat</s>\n<s>assistant\n"
    assert tokenizer(text).input_ids.count(llava.config.image_token_id) == 1
    assert llava.generation_config.eos_token_id == 2


def test_the_projector_depends_on_the_seed_alone(halves, tmp_path):
    weights = []
    for number, flags in enumerate(([], [], ["--seed", "1"], ["--vision_feature_layer", "-1", "--dtype", "bf16"])):
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        llava = composed(halves("clip"), halves("llama"), tmp_path / str(number), *flags)
        assert torch.equal(torch.random.get_rng_state(), before)
        weights.append([*llava.model.multi_modal_projector.state_dict().values(), *llava.lm_head.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    assert 0.01 < weights[0][0].std() < 0.03 and not weights[0][1].any()
    assert llava.config.vision_feature_layer == -1 and llava.dtype == torch.bfloat16
    # No file has a path of this machine.
    files = [path.read_text() for path in (tmp_path / "0").iterdir() if path.suffix in (".json", ".md")]
    assert len(files) >= 6 and not any(str(halves("clip").parent) in text for text in files)


def test_the_card_records_both_licences(halves, tmp_path):
    for name, licence in (("clip", "mit"), ("llama", "Llama 2 Community License")):
        shutil.copytree(halves(name), tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    composed(tmp_path / "clip", tmp_path / "llama", tmp_path / "llava")
    assert metadata_load(tmp_path / "llava/README.md")["license"] == ["mit", "llama2"]
    assert licence_of(tmp_path / "llava") == "llama2" and "Llama 2" in (tmp_path / "llava/NOTICE").read_text()
    composed(tmp_path / "clip", halves("llama"), tmp_path / "other", "--language_model_licence", "Apache-2.0")
    assert licence_of(tmp_path / "other") == "mit, apache-2.0" and not (tmp_path / "other/NOTICE").exists()
    composed(tmp_path / "clip", halves("llama"), tmp_path / "unknown")
    assert licence_of(tmp_path / "unknown") == "mit, unknown"


GRANITE = {"logits_scaling": 8.0}


@pytest.mark.parametrize(
    ("tower", "language_model", "flags", "message"),
    [
        ("absent", "llama", [], "tower .*absent: .*"),
        (
            "llama",
            "llama",
            [],
            "tower .*: of type 'llama' has no square image of square patches: give a",
        ),
        (
            "swin",
            "llama",
            [],
            "tower .*: type 'swin' has no hidden state of every patch after every block: ",
        ),
        ("siglip2_vision_model", "llama", [], "tower .*: type 'siglip2_vision_model' cannot run on pixels alone"),
        ("deit", "llama", [], "tower .*: type 'deit' has 2 states in front of the patches, not 1: give a tower such"),
        ("llava", "llama", [], r"tower .*: is a multimodal LLM \(llava\) already: give a vision encoder such as CLIP"),
        ("ours", "llama", [], "tower .*ours: is a checkpoint of this package: give a vision encoder of transformers"),
        ("clip", "absent", [], "language_model .*absent: "),
        ("clip", "t5", [], "language_model .*: of type 't5' is an encoder-decoder: give a causal language model"),
        ("clip", "clip", [], "language_model .*: of type 'clip' is a vision-language model, no language model"),
        ("clip", "vit", [], "language_model .*: of type 'vit' is no language model: give a causal"),
        ("clip", "gpt_neox", [], r"language_model .*: of type 'gpt_neox' has other modules than a LLaVA can hold"),
        ("clip", "granite", [], "language_model .*: of type 'granite' scales its logits, which a LLaVA does not"),
        (
            "clip",
            "llama",
            ["--vision_feature_layer", "4"],
            "vision_feature_layer 4: the tower has 3 blocks: give -4",
        ),
        ("clip", "llama", ["--tower_licence", "?"], "tower_licence '\\?': not a licence"),
    ],
)
def test_mistakes(tower, language_model, flags, message, halves, disk, tmp_path):
    def folder(kind):
        if kind in LANGUAGE_MODELS or kind in TOWERS:
            return halves(kind)
        if kind in ("llava", "ours"):
            return {"llava": disk.native, "ours": disk.ours}[kind]
        if kind == "granite":
            write_language_model(tmp_path / kind, kind, **GRANITE)
        elif kind != "absent":
            # Refused by the configuration, before the weights are read.
            fields = {"siglip2_vision_model": {"image_size": 32}}
            (tmp_path / kind).mkdir()
            (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind, **fields.get(kind, {})}))
        return tmp_path / kind

    with pytest.raises(UserError, match=message) as raised:
        composed(folder(tower), folder(language_model), tmp_path / "llava", *flags)
    assert "\n" not in str(raised.value) and not (tmp_path / "llava").exists()


@pytest.mark.parametrize(
    ("half", "file", "change", "message"),
    [
        ("clip", "config.json", {"vision_config": {"patch_size": 0}}, "tower .*: of type 'clip' has no square image"),
        ("clip", "config.json", {"vision_config": {"hidden_act": "nope"}}, "tower .*: KeyError: 'nope'"),
        ("llama", "config.json", {"num_hidden_layers": 0}, "language_model .*: of type 'llama' has other modules"),
        ("llama", "config.json", {"quantization_config": {"quant_method": "gptq"}}, ".*: has quantised weights: give"),
        ("llama", "chat_template.jinja", "{{ 1 / 0 }}", r"language_model .*: the chat template does not .*\(division"),
        ("clip", "preprocessor_config.json", None, "tower .*: Can't load image processor"),
    ],
)
def test_broken_halves(half, file, change, message, halves, tmp_path):
    folders = {name: halves(name) for name in ("clip", "llama")} | {half: tmp_path / half}
    shutil.copytree(halves(half), tmp_path / half)
    path = tmp_path / half / file
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        fields = json.loads(path.read_text())
        nested = change.get("vision_config", {})
        path.write_text(
            json.dumps(fields | change | ({"vision_config": fields["vision_config"] | nested} if nested else {}))
        )
    with pytest.raises(UserError, match=message) as raised:
        composed(folders["clip"], folders["llama"], tmp_path / "llava")
    assert "\n" not in str(raised.value) and not (tmp_path / "llava").exists()


def test_nothing_is_replaced_and_a_full_disk_is_found_before_the_work(halves, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="output .*mine: exists and is not empty: remove it or give another path"):
        composed(halves("clip"), halves("llama"), tmp_path / "mine")
    with pytest.raises(UserError, match="output .*: is inside .*, an input: give another path"):
        composed(halves("clip"), halves("llama"), halves("clip") / "llava")
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2, 1, 1))
    monkeypatch.setattr(compose, "compose_llava", None)
    with pytest.raises(UserError, match="output .*llava: takes .* MiB, the disk has 0: free space or give another"):
        composed(halves("clip"), halves("llama"), tmp_path / "llava")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
