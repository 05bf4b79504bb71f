"""The real recipes at full size on the meta device, without weights."""

import re
from pathlib import Path

import pytest
import torch
from transformers import LlavaConfig

from modeling_mllmreid.commands import train
from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel
from modeling_mllmreid.training.adapters import AdapterArguments, apply_adapters

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("llava_1_5_7b_*.yaml"))
# LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels, a two-layer projector, Vicuna-7B with 64 more tokens.
VICUNA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32064}


def llava_config():
    return LlavaConfig(text_config={"model_type": "llama", "num_attention_heads": 32, **VICUNA})


def full_size(**fields):
    with torch.device("meta"):
        return MllmReIDModel(MllmReIDConfig(mllm_config=llava_config(), **fields))


def published_layout() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors in the index of llava-hf/llava-1.5-7b-hf."""
    d, inner, words, c, tower_inner = 4096, 11008, 32064, 1024, 4096
    layout: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (words, d),
        "language_model.model.norm.weight": (d,),
        "language_model.lm_head.weight": (words, d),
        "multi_modal_projector.linear_1.weight": (d, c),
        "multi_modal_projector.linear_1.bias": (d,),
        "multi_modal_projector.linear_2.weight": (d, d),
        "multi_modal_projector.linear_2.bias": (d,),
    }
    for i in range(32):
        block = f"language_model.model.layers.{i}"
        layout |= {f"{block}.self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        layout |= {f"{block}.mlp.{name}_proj.weight": (inner, d) for name in ("gate", "up")}
        layout |= {f"{block}.mlp.down_proj.weight": (d, inner)}
        layout |= {f"{block}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    tower = "vision_tower.vision_model"
    layout |= {
        f"{tower}.embeddings.class_embedding": (c,),
        f"{tower}.embeddings.patch_embedding.weight": (c, 3, 14, 14),
        f"{tower}.embeddings.position_embedding.weight": (577, c),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        layout |= {f"{tower}.{norm}.{kind}": (c,) for kind in ("weight", "bias")}
    for i in range(24):
        block = f"{tower}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layout |= {f"{block}.self_attn.{name}.weight": (c, c), f"{block}.self_attn.{name}.bias": (c,)}
        layout |= {f"{block}.mlp.fc1.weight": (tower_inner, c), f"{block}.mlp.fc1.bias": (tower_inner,)}
        layout |= {f"{block}.mlp.fc2.weight": (c, tower_inner), f"{block}.mlp.fc2.bias": (c,)}
        for norm in ("layer_norm1", "layer_norm2"):
            layout |= {f"{block}.{norm}.{kind}": (c,) for kind in ("weight", "bias")}
    return layout


def ours(name: str) -> str:
    """Returns the name in the model of a published tensor."""
    name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "model.language_model.")
    name = name.replace("vision_tower.vision_model.", "model.vision_tower.")
    return f"model.{name}" if name.startswith("multi_modal_projector") else name


def test_names_shapes_and_count_are_those_of_the_published_checkpoint(make_llava, tmp_path):
    model, layout = full_size(), published_layout()
    got = {name: tuple(p.shape) for name, p in model.mllm.named_parameters()}
    assert len(layout) == 686 and sum(p.numel() for p in model.mllm.parameters()) == 7_063_427_072
    assert {ours(name): shape for name, shape in layout.items()} == got
    # transformers reads the published names: a tiny LLaVA saved under them loads unchanged.
    from safetensors.torch import load_file, save_file

    tiny = make_llava(seed=3)
    tiny.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    theirs = {ours(name): name for name in layout}
    renamed = {theirs[name]: value for name, value in state.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = MllmReIDModel.from_mllm_pretrained(tmp_path, height=64, width=32)
    assert load_file(tmp_path / "model.safetensors").keys() == renamed.keys()
    assert all(torch.equal(loaded.mllm.state_dict()[name], value) for name, value in state.items())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with the configuration of the published checkpoint and no weights."""
    folder = tmp_path_factory.mktemp("llava-1.5-7b-hf")
    llava_config().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_documents_its_memory(recipe, published, capsys):
    train.main([str(recipe), "--model", str(published), "--dry_run", "true"])
    printed = dict(re.findall(r"^(\w+) +([\d.]+) GiB", capsys.readouterr().out, re.MULTILINE))
    text = recipe.read_text()
    documented = dict(re.findall(r"^#   (\w+) +([\d.]+)  ", text, re.MULTILINE))
    documented["total"] = re.search(r"--dry_run true\): ([\d.]+) GiB", text)[1]
    assert documented == printed and len(documented) == 6


@pytest.mark.parametrize(("tower", "megabytes"), [("full", 1500), ("lora", 300)])
def test_a_thin_checkpoint_of_rank_16_is_small(tower, megabytes):
    model = full_size(num_identities=751)
    with torch.device("meta"):
        own = apply_adapters(model, AdapterArguments(language_model="lora", tower=tower), torch.bfloat16)
    model.config.backbone, model.config.own_modules = "llava-hf/llava-1.5-7b-hf", own
    held = list(model.own_weights().values()) + [p for name, p in model.named_parameters() if ".lora_" in name]
    assert {weight.dtype for weight in held if weight.is_floating_point()} == {torch.float32}
    size = sum(weight.numel() * weight.element_size() for weight in held) / 1e6
    assert 0.9 * megabytes < size <= megabytes
    # The export in bf16 leaves out the ID classifier.
    published = sum(weight.numel() for weight in held) - 751 * (4096 + 1024)
    assert published * 2 / 1e6 <= {1500: 750, 300: 155}[megabytes]
