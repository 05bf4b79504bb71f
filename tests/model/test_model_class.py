"""The model class within transformers: properties, initialisation, and embeddings of captions or of pixels alone."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from transformers.utils import is_flash_attn_2_available

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.model.heads import ReIDHead


def test_transformers_finds_the_properties_of_the_class(make_model, tmp_path):
    model = make_model(num_identities=500)
    # N(0, 0.001), at the start and after the people have changed.
    for people in (500, 700):
        if people == 700:
            model.set_num_identities(people)
        for head in model.reid_head.values():
            weight = head.classifier.weight.detach()
            assert weight.shape == (people, 32) and abs(weight.mean()) < 5e-5
            assert float(weight.std()) == pytest.approx(0.001, rel=0.05)
    assert model.base_model is model.mllm and model.main_input_name == "pixel_values"
    assert model.get_output_embeddings() is model.mllm.lm_head
    embedding = torch.nn.Embedding(*model.get_input_embeddings().weight.shape)
    model.set_input_embeddings(embedding)
    assert model.mllm.model.language_model.embed_tokens is embedding is model.get_input_embeddings()
    model.set_num_identities(3, "digest")
    assert (model.config.num_identities, model.config.identities_digest) == (3, "digest")
    model.save_pretrained(tmp_path)
    loaded = MllmReIDModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="sdpa")
    for part in (loaded.config.mllm_config, loaded.mllm.config.text_config, loaded.mllm.config.vision_config):
        assert part._attn_implementation == "sdpa"
    if not is_flash_attn_2_available():
        # What is missing is the package, not the model's support.
        with pytest.raises(ImportError, match="FlashAttention2"):
            MllmReIDModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="flash_attention_2")
    # The model's number format is the language model's, whatever a trained encoder has; the heads are float32.
    loaded.mllm.model.vision_tower.float()
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.reid_head.state_dict().items():
        # Loaded as it was stored: by way of bfloat16 digits would be lost.
        assert torch.equal(tensor, model.reid_head.state_dict()[name]), name


def test_without_people_there_is_no_digest_of_them(make_model):
    model = make_model()
    model.set_num_identities(0, "digest")
    assert (model.config.num_identities, model.config.identities_digest) == (0, None)


def test_new_weights_are_on_the_models_device(make_model):
    model = make_model().to("meta")
    model.set_num_identities(9)
    assert {head.classifier.weight.device.type for head in model.reid_head.values()} == {"meta"}
    assert model.image_features(torch.zeros(0, 3, 64, 32, device="meta"))["llm"].device.type == "meta"


def test_a_prompt_may_begin_with_its_image(make_model, make_batch):
    pixels = make_batch(2)["pixel_values"]
    model = make_model(image_prefix_ids=[]).eval()
    assert model.encode_images(pixels).shape == (2, 32) and not torch.equal(
        model.encode_images(pixels), make_model().eval().encode_images(pixels)
    )


def test_heads_of_every_format_and_device_are_float32_at_least():
    for default, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            head = ReIDHead(4, 3)
        finally:
            torch.set_default_dtype(before)
        assert {p.dtype for p in head.parameters()} == {head.bottleneck.running_var.dtype} == {kept}
        head.remake_classifier(5)
        assert head.classifier.weight.dtype == kept
        head.to_empty(device="meta", recurse=False)
        assert not any(p.is_meta for p in head.parameters())
        # From double to half, and to another device on the way.
        head.double().to("meta", torch.float16)
        assert {(p.dtype, p.device.type) for p in head.parameters()} == {(torch.float32, "meta")}


def test_a_language_model_whose_weights_are_elsewhere_reads_texts_and_images(make_model, make_batch, tiny_processor):
    """accelerate keeps the weights outside of the modules, which then look as if on no device."""
    model, pixels = make_model().eval(), make_batch(4)["pixel_values"]
    text = tiny_processor(text=["a bag .", "a man with a red shirt ."])
    expected = model.encode_images(pixels), model.encode_text(**text)
    cpu_offload(model.mllm.model.language_model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    assert model.encode_text(**tiny_processor(text=[])).device.type == "cpu"
    torch.testing.assert_close(model.encode_images(pixels), expected[0])
    torch.testing.assert_close(model.encode_text(**text), expected[1])


@pytest.mark.parametrize("after_bn", [False, True])
def test_the_feature_of_a_caption_is_the_mean_over_its_own_tokens(make_model, tiny_processor, count_calls, after_bn):
    model = make_model(feature_after_bn=after_bn, llm_layer=1).eval()
    norm = model.reid_head["llm"].bottleneck
    torch.nn.init.uniform_(norm.running_mean, -1, 1, generator=torch.Generator().manual_seed(1))
    inputs = tiny_processor(text=["a man with a red shirt .", "a bag ."])
    # A token that is masked out is read by no other one.
    inputs["attention_mask"][0, 3] = inputs["caption_mask"][0, 3] = 0
    language = model.mllm.model.language_model
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    states = language(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], output_hidden_states=True
    ).hidden_states[1]
    pooled = torch.stack([state[mask].mean(0) for state, mask in zip(states, inputs["caption_mask"], strict=True)])
    expected = norm(pooled) if after_bn else pooled
    # No block above the layer that is pooled runs.
    calls = [count_calls(block) for block in language.layers]
    torch.testing.assert_close(model.encode_text(**inputs), F.normalize(expected, dim=1))
    assert [block.calls for block in calls] == [1, 0]


def test_a_prompt_may_end_with_its_image(make_model, make_batch):
    model, pixels = make_model().eval(), make_batch(2)["pixel_values"]
    prompt = torch.tensor([[*model.config.image_prefix_ids, *[model.config.mllm_config.image_token_id] * 8]] * 2)
    expected = model.mllm(inputs_embeds=model.embed_image_prompt(model.project_image(model.run_tower(pixels))))
    ids = model.generate(prompt, pixels, max_new_tokens=2, do_sample=False)
    assert torch.equal(ids[:, 0], expected.logits[:, -1].argmax(-1))
    with pytest.raises(ValueError, match="must start with image_prefix_ids and 8 image tokens"):
        model.generate(prompt[:, :-1], pixels)


def test_the_language_loss_of_a_single_target_token_and_of_none(make_model):
    model = make_model(distillation_weight=0.25)
    sums = {name: torch.tensor(value) for name, value in {"image": 6.0, "text": 0.0, "distillation": 8.0}.items()}
    assert float(model.language_loss(sums, {"image": 1, "text": 0, "distillation": 1})) == 6 / 2 + 0.25 * 8
    assert float(model.language_loss({"image": sums["image"]}, {"image": 4, "text": 0})) == 1.5


def test_the_language_loss_of_images_reads_the_last_layer_whichever_is_pooled(make_model, make_batch):
    model, batch = make_model(llm_layer=1).eval(), make_batch()
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "labels")}
    total, tokens = model.image_language_loss(**inputs)
    output = model(**batch)
    torch.testing.assert_close(total, output.language_loss_sums["image"])
    assert tokens == output.label_counts["image"]
