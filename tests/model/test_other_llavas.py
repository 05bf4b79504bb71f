"""LLaVAs of other shapes, compared with native LLaVA: unequal sizes, several tower layers, the class token."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration

from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor

FORMS = {
    "another layer": {"vision_feature_layer": -2},
    "two layers": {"vision_feature_layer": [-1, 1]},
    "with the class token": {"vision_feature_layer": [2], "vision_feature_select_strategy": "full"},
}


@pytest.fixture
def make_other(make_llava, tiny_processor):
    """make_other(form, **fields) -> (model, processor): the tower has 24 dimensions, the language model 40."""

    def make(form, **fields):
        config = make_llava().config.to_dict()
        config["vision_config"] |= {"hidden_size": 24, "intermediate_size": 48}
        config["text_config"] |= {"hidden_size": 40, "intermediate_size": 80, "head_dim": 10}
        torch.manual_seed(0)
        llava = LlavaForConditionalGeneration(LlavaConfig(**(config | FORMS[form])))
        processor = MllmReIDProcessor(
            tiny_processor.image_processor,
            tiny_processor.tokenizer,
            unit=16,
            extra_image_tokens=int(llava.config.vision_feature_select_strategy == "full"),
        )
        size = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids, "num_identities": 4}
        return MllmReIDModel.from_mllm(llava, **size, **fields), processor

    return make


@pytest.mark.parametrize("form", FORMS)
def test_both_features_and_the_language_loss_are_those_of_the_native_model(make_other, make_batch, form):
    model, processor = make_other(form, feature_after_bn=False, test_feature="concat")
    model.eval()
    native, pixels = copy.deepcopy(model.mllm), make_batch(4)["pixel_values"]
    targets = [processor.target_ids(text) for text in ("a bag .", "she has long hair .", "a red skirt", "a bag")]
    batch = {"pixel_values": pixels, **processor.build_inputs([processor.image_prompt_ids()] * 4, targets)}
    batch["person_ids"] = torch.tensor([0, 0, 1, 1])
    output = model(**batch)

    # Native LLaVA does not pass the interpolation on by itself.
    image_features = native.model.get_image_features
    native.model.get_image_features = lambda **kwargs: image_features(**kwargs, interpolate_pos_encoding=True)
    del batch["person_ids"]
    expected = native(**batch, output_hidden_states=True)
    torch.testing.assert_close(output.loss_parts["lm_image"], expected.loss.detach())
    batch["attention_mask"][1, -6] = 0
    total, tokens = model.image_language_loss(**batch)
    masked = native(**batch)
    assert tokens == int((batch["labels"] != -100).sum()) and total.requires_grad
    torch.testing.assert_close(total / tokens, masked.loss)
    assert float(masked.loss.detach() - expected.loss.detach()) != 0
    first = len(processor.image_prefix_ids)
    count = model.config.num_image_tokens
    assert count == (9 if form == "with the class token" else 8) == int((batch["input_ids"][0] == 4).sum())
    torch.testing.assert_close(output.features["llm"], expected.hidden_states[-1][:, first : first + count].mean(1))
    layers = FORMS[form]["vision_feature_layer"]
    tower = native.model.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    # Of several layers the last one that is named.
    state = tower.hidden_states[layers if isinstance(layers, int) else layers[-1]]
    state = state if form == "with the class token" else state[:, 1:]
    torch.testing.assert_close(output.features["vision"], state.mean(1))

    features = [F.normalize(output.features[name].detach(), dim=-1) for name in ("llm", "vision")]
    concat = torch.cat(features, dim=1) / 2**0.5
    torch.testing.assert_close(model.encode_images(pixels), concat)
    torch.testing.assert_close(model(pixels).image_embeds, concat)
    empty = model.image_features(pixels[:0], ("concat",))
    assert {name: tuple(values.shape) for name, values in empty.items()} == {
        **{"llm": (0, 40), "vision": (0, 24)},
        "concat": (0, 64),
    }
    assert {name: tuple(values.shape) for name, values in model.image_features(pixels[:0], ("vision",)).items()} == {
        "vision": (0, 24)
    }
    assert model.encode_text(**processor(text=[])).shape == (0, 40)
    assert model.encode_text(*[torch.zeros(0, 7, dtype=torch.long)] * 3).shape == (0, 40)


def test_embeddings_use_the_running_statistics_of_each_head(make_other, make_batch):
    model, _ = make_other("another layer", test_feature="concat")
    torch.manual_seed(1)
    for head in model.eval().reid_head.values():
        for values in (head.bottleneck.running_mean, head.bottleneck.weight.data, head.bottleneck.running_var):
            torch.nn.init.uniform_(values, 0.5, 2)
    pixels = make_batch(4)["pixel_values"]
    pooled = model(pixels).features
    features = []
    for name in ("llm", "vision"):
        norm = model.reid_head[name].bottleneck
        features.append(
            F.normalize((pooled[name] - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight, dim=1)
        )
    torch.testing.assert_close(model.encode_images(pixels), torch.cat(features, dim=1) / 2**0.5)
