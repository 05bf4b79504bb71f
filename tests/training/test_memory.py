"""The estimate of memory counts what a real model has, each tied weight once."""

import pytest
import torch
from families import CONFIGS
from transformers import AutoConfig, AutoModelForImageTextToText

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.loading import load_config
from modeling_mllmreid.training.memory import estimate_memory


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "not tied"])
def test_parameters_and_weights_are_those_of_the_model(tied, tmp_path):
    sizes = CONFIGS["Qwen3-VL"]
    text = {**sizes["text_config"], "tie_word_embeddings": tied}
    config = AutoConfig.for_model(**{**sizes, "text_config": text, "tie_word_embeddings": tied})
    config.save_pretrained(tmp_path)
    native = AutoModelForImageTextToText.from_config(config)
    words = native.get_input_embeddings().weight, native.get_output_embeddings().weight
    assert (words[0] is words[1]) == tied
    args = ReIDTrainingArguments(output_dir=str(tmp_path / "run"), eval_strategy="no", use_cpu=True)
    loaded = load_config(ModelArguments(str(tmp_path)), {"num_identities": 8})
    memory = estimate_memory(loaded, AdapterArguments(), args, BatchArguments(), dtype=torch.float32)
    heads = sum(p.numel() for p in MllmReIDModel(loaded).heads.parameters())
    assert memory.parameters == sum(p.numel() for p in native.parameters()) + heads
    assert memory.weights == 4 * memory.parameters


@pytest.mark.parametrize("reid_on", ["vision", "both"])
def test_a_share_of_the_texts_takes_less_memory(reid_on, tmp_path):
    config = AutoConfig.for_model(**CONFIGS["LLaVA, CLIP"])
    config.save_pretrained(tmp_path)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    args = ReIDTrainingArguments(
        str(tmp_path / "run"), eval_strategy="no", use_cpu=True, activation_checkpointing=False
    )
    loaded = load_config(ModelArguments(str(tmp_path)), {"num_identities": 8, "reid_on": reid_on})

    def estimate(**batch):
        return estimate_memory(loaded, AdapterArguments(), args, BatchArguments(**batch), dtype=torch.float32)

    whole, most, half, quarter = (estimate(language_share=share) for share in (1.0, 0.75, 0.5, 0.25))
    assert whole.logits == 2 * half.logits == 4 * quarter.logits > 0
    # Each text costs as much. With the LLM's feature the images run apart from the texts.
    each = half.activations - quarter.activations
    assert each == pytest.approx(most.activations - half.activations, rel=1e-3) and each > 0
    assert quarter.activations < whole.activations
    assert (quarter.weights, quarter.gradients, quarter.optimizer) == (whole.weights, whole.gradients, whole.optimizer)
