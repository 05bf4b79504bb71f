"""The real recipe as far as a machine without weights can check it: the full-size model on the meta device."""

from pathlib import Path

import torch
import yaml
from transformers import LlavaConfig

from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel
from modeling_mllmreid.training.freezing import freeze_unused_parameters
from modeling_mllmreid.training.run import parameter_counts

RECIPE = Path(__file__).parents[2] / "configs" / "llava_1_5_7b_market1501.yaml"
# LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels, a two-layer projector, Vicuna-7B with 64 rows more in its vocabulary.
VICUNA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32064}


def test_the_recipe_builds_at_full_size_and_trains_what_it_says(capsys):
    recipe = yaml.safe_load(RECIPE.read_text())
    fields = {name: value for name, value in recipe.items() if name in MllmReIDConfig.__annotations__}
    llava = LlavaConfig(text_config={"model_type": "llama", "num_attention_heads": 32, **VICUNA})
    with torch.device("meta"):
        model = MllmReIDModel(MllmReIDConfig(mllm_config=llava, num_identities=651, **fields))
    frozen = freeze_unused_parameters(model)
    counts = parameter_counts(model)
    print(counts)
    llava_parameters = sum(p.numel() for p in model.mllm.parameters())
    assert llava_parameters == 7_063_427_072
    # Both heads: a batch norm and a classifier each.
    assert counts.startswith(f"{llava_parameters + (4096 + 1024) * (651 + 1):,} parameters")
    # The tower's last block and its final norm: LLaVA reads the layer before.
    assert {name.split(".")[5] if ".layers." in name else name.split(".")[3] for name in frozen} == {
        "23",
        "post_layernorm",
    }
    assert "7,0" in capsys.readouterr().out
