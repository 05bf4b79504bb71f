"""The configurations' checks: types, ranges, layers, and names in foreign files."""

import copy

import pytest
import torch

from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel, MllmReIDVisionConfig

WRONG = [
    ({"height": "252"}, "height is '252'; give a whole number"),
    ({"height": True}, "height is True; give a whole number"),
    ({"width": 126.0}, "width is 126.0; give a whole number"),
    ({"height": 0}, "height is 0; give 1 or more"),
    ({"width": 32_000}, "height x width is 252 x 32000; give at most 4096 each"),
    (
        {"mllm_config": {"vision_config": {"patch_size": 14, "num_hidden_layers": -1}}},
        "mllm_config.vision_config.num_hidden_layers is -1; give 1",
    ),
    (
        {"mllm_config": {"text_config": {"model_type": "llama", "num_hidden_layers": -1}}},
        "mllm_config.text_config.num_hidden_layers is -1; give 1 or more",
    ),
    ({"width": -14}, "width is -14; give 1 or more"),
    ({"reid_on": "text"}, "reid_on is 'text'; give 'llm' or 'vision' or 'both'"),
    ({"test_feature": "both"}, "test_feature is 'both'; give 'llm' or 'vision' or 'concat'"),
    ({"bnneck": 1}, "bnneck is 1; give true or false"),
    ({"loss_lambda": float("nan")}, "loss_lambda is nan; give a finite number"),
    ({"loss_lambda": "0.5"}, "loss_lambda is '0.5'; give a finite number"),
    ({"loss_lambda": 1.5}, "loss_lambda is 1.5; give a number from 0 to 1"),
    ({"label_smoothing": 2}, "label_smoothing is 2; give a number from 0 to 1"),
    ({"id_weight": float("inf")}, "id_weight is inf; give a finite number"),
    ({"triplet_weight": -1.0}, "triplet_weight is -1.0; give 0 or more"),
    ({"distillation_weight": -0.1}, "distillation_weight is -0.1; give 0 or more"),
    ({"triplet_margin": -0.3}, "triplet_margin is -0.3; give 0 or more"),
    ({"num_identities": 2.5}, "num_identities is 2.5; give a whole number"),
    ({"num_identities": -1}, "num_identities is -1; give 0 or more"),
    ({"image_prefix_ids": "abc"}, "image_prefix_ids is 'abc'; give a list"),
    ({"image_prefix_ids": [1.5]}, r"image_prefix_ids is \[1.5\]; give a list"),
    ({"image_prefix_ids": [32000]}, "image_prefix_ids holds 32000; give ids from 0 to 31999"),
    ({"llm_layer": 33}, "llm_layer is 33; of 32 layers give a number from -33 to 32"),
    ({"llm_layer": -34}, "llm_layer is -34; of 32 layers"),
    ({"vision_layer": 25}, "vision_layer is 25; of 24 layers give a number from -25 to 24"),
    ({"vision_layer": "last"}, "vision_layer is 'last'; give a whole number or null"),
    ({"mllm_config": {"vision_feature_layer": 77}}, "mllm_config.vision_feature_layer is 77; of 24 layers"),
    (
        {"mllm_config": {"vision_feature_layer": []}},
        r"mllm_config.vision_feature_layer is \[\]; give at least one layer",
    ),
    ({"mllm_config": {"vision_config": {"patch_size": 0}}}, "vision_config.patch_size is 0; give a whole number"),
    ({"mllm_config": {"model_type": "bert"}}, "'bert' is no known family of multimodal LLMs: give a model of llava, "),
    ({"mllm_config": [1]}, r"mllm_config is \[1\]; give the fields of a configuration"),
    ({"mllm_config": {"vision_config": [1]}}, "mllm_config: .*vision_config"),
    ({"adapter": "../../x"}, "adapter is '../../x'; give the name of a sub-folder of the checkpoint"),
    ({"adapter": "/etc"}, "adapter is '/etc'; give the name"),
    ({"adapter": ".."}, "adapter is '..'; give the name"),
    ({"backbone": 3}, "backbone is 3; give text or null"),
    ({"backbone": "../native"}, "backbone is '../native'; give a name on the Hub or a folder's absolute path"),
    ({"backbone": "a/b/c"}, "backbone is 'a/b/c'; give a name on the Hub"),
    ({"backbone": "//server/share"}, "backbone is '//server/share'; give a name on the Hub"),
    ({"backbone": "https://host/x"}, "backbone is 'https://host/x'; give a name on the Hub"),
    ({"backbone": "a/b", "backbone_revision": "../../x"}, "backbone_revision is '../../x'; give a commit"),
    ({"trained_on": "market1501"}, "trained_on is 'market1501'; give a list"),
    ({"text_loss": "clip"}, "text_loss is 'clip'; give 'contrastive' or 'triplet'"),
    ({"text_temperature": 0}, "text_temperature is 0; give a number above 0"),
    ({"text_temperature": float("nan")}, "text_temperature is nan; give a finite number"),
]

DEFAULTS = {
    "height": 252,
    "width": 126,
    "reid_on": "both",
    "loss_lambda": 0.7,
    "id_weight": 1.0,
    "triplet_weight": 1.0,
    "label_smoothing": 0.1,
    "triplet_margin": 0.3,
    "triplet_soft_margin": False,
    "bnneck": True,
    "feature_after_bn": True,
    "test_feature": "llm",
    "llm_layer": -1,
    "vision_layer": None,
    "distillation_weight": 0.0,
    "reid_text": False,
    "text_loss": "contrastive",
    "text_temperature": 0.07,
    "num_identities": 0,
}


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[str(fields)[:40] for fields, _ in WRONG])
def test_a_field_out_of_its_range_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        MllmReIDConfig(**fields)
    assert "\n" not in str(error.value)


def test_defaults_and_both_ends_of_each_range_are_accepted():
    config = MllmReIDConfig().to_dict()
    assert {name: config[name] for name in DEFAULTS} == DEFAULTS
    for fields in (
        {"loss_lambda": 0, "label_smoothing": 1, "id_weight": 0, "triplet_weight": 0, "image_prefix_ids": [0]},
        {"loss_lambda": 1, "label_smoothing": 0, "triplet_margin": 0, "distillation_weight": 0, "vision_layer": -25},
    ):
        assert MllmReIDConfig(**fields).to_dict().items() >= fields.items()
    assert MllmReIDConfig(reid_on="llm", reid_text=True).reid_heads == ("llm",)
    assert MllmReIDConfig().reid_heads == ("llm", "vision")


def test_a_checkpoint_from_before_the_field_text_loss_has_the_triplet_loss():
    stored = MllmReIDConfig(reid_text=True).to_dict()
    assert MllmReIDConfig.from_dict(stored).has_text_bottleneck
    del stored["text_loss"]
    assert MllmReIDConfig.from_dict(stored).text_loss == "triplet"
    assert not MllmReIDConfig.from_dict(stored).has_text_bottleneck
    # Without captions in its training it has none to keep.
    assert MllmReIDConfig.from_dict({**stored, "reid_text": False}).text_loss == "contrastive"


def test_valid_fields_stay_unchanged():
    config = MllmReIDConfig(
        id_weight=1, llm_layer=-33, vision_layer=24, image_prefix_ids=[1, 31999], backbone="llava-hf/llava-1.5-7b-hf"
    )
    assert MllmReIDConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert MllmReIDConfig(backbone="/models/llava", backbone_revision="refs/pr/3").backbone == "/models/llava"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0}, "height is 0; give 1 or more"),
        ({"width": 100}, "256 x 100; both must be multiples of 32, .* give 256 x 96"),
        ({"test_feature": "llm"}, "test_feature is 'llm'; give 'vision'"),
        ({"vision_config": {"model_type": "bert"}}, "vision_config.patch_size is None; give a whole number"),
        ({"vision_config": 3}, "vision_config is 3; give the fields of a configuration"),
    ],
)
def test_fields_of_the_vision_forms_configuration_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        MllmReIDVisionConfig(**{"height": 256, "width": 128, **fields} if "width" not in fields else fields)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_arguments_of_a_configuration_are_never_changed(make_llava, tiny_processor, attention):
    """A language model whose configuration names no attention sees ahead, without a word."""

    def choices(config):
        return [part._attn_implementation for part in (config, config.text_config, config.vision_config)]

    live = make_llava()
    live.set_attn_implementation(attention)
    before, input_ids = copy.deepcopy(live.config), torch.arange(3, 9)[None]
    with torch.inference_mode():
        logits = live.eval()(input_ids=input_ids).logits
    size = {"height": 64, "width": 32}
    made = MllmReIDConfig(mllm_config=live.config, **size)
    MllmReIDVisionConfig(vision_config=live.config.vision_config, **size)
    made.mllm_config.text_config.num_hidden_layers = 1
    fields = {"vision_config": {"patch_size": 16}, "text_config": {"vocab_size": 100}, "vision_feature_layer": [-1]}
    MllmReIDConfig(mllm_config=fields, **size).mllm_config.vision_feature_layer.append(-2)
    assert fields == {
        "vision_config": {"patch_size": 16},
        "text_config": {"vocab_size": 100},
        "vision_feature_layer": [-1],
    }
    around = MllmReIDModel.from_mllm(live, **size, image_prefix_ids=tiny_processor.image_prefix_ids)
    assert live.config.to_dict() == before.to_dict()
    assert choices(live.config) == choices(before) == [attention] * 3
    # One configuration for the wrapped model: what changes one changes the other.
    assert around.config.mllm_config is live.config
    with torch.inference_mode():
        assert torch.equal(live(input_ids=input_ids).logits, logits)
        later = input_ids.clone()
        later[0, -1] = 2
        assert torch.equal(live(input_ids=later).logits[:, :-1], logits[:, :-1])
