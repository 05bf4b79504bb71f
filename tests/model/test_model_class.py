"""What transformers reads off the model class, what it makes anew, and embeddings of captions and of pixels alone."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload

from modeling_mllmreid.model import MllmReIDModel


def test_what_transformers_reads_off_the_class(make_model, tmp_path):
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


def test_what_is_made_anew_lies_where_the_model_lies(make_model):
    model = make_model().to("meta")
    model.set_num_identities(9)
    assert {head.classifier.weight.device.type for head in model.reid_head.values()} == {"meta"}


def test_a_language_model_whose_weights_are_elsewhere_reads_texts_and_images(make_model, make_batch, tiny_processor):
    """accelerate keeps the weights outside of the modules, which then look as if on no device."""
    model, pixels = make_model().eval(), make_batch(4)["pixel_values"]
    text = tiny_processor(text=["a bag .", "a man with a red shirt ."])
    expected = model.encode_images(pixels), model.encode_text(**text)
    cpu_offload(model.mllm.model.language_model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    torch.testing.assert_close(model.encode_images(pixels), expected[0])
    torch.testing.assert_close(model.encode_text(**text), expected[1])


@pytest.mark.parametrize("after_bn", [False, True])
def test_the_feature_of_a_caption_is_the_mean_over_its_own_tokens(make_model, tiny_processor, count_calls, after_bn):
    model = make_model(feature_after_bn=after_bn, llm_layer=1).eval()
    norm = model.reid_head["llm"].bottleneck
    torch.nn.init.uniform_(norm.running_mean, -1, 1, generator=torch.Generator().manual_seed(1))
    inputs = tiny_processor(text=["a man with a red shirt .", "a bag ."])
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


def test_pixels_alone_run_no_language_model_where_its_feature_is_not_asked_for(make_model, make_batch, count_calls):
    model = make_model(reid_on="vision", test_feature="vision").eval()
    language = count_calls(model.mllm.model.language_model)
    output = model(make_batch(4)["pixel_values"])
    assert language.calls == 0 and output.features.llm is None and output.image_embeds.shape == (4, 32)


def test_text_is_generated_after_a_prompt_without_an_image(make_model):
    model, prompt = make_model().eval(), torch.tensor([[1, 7, 8], [1, 9, 6]])
    ids = model.generate(prompt, max_new_tokens=3, do_sample=False)
    embeddings = model.get_input_embeddings()(prompt)
    expected = model.mllm(inputs_embeds=embeddings).logits[:, -1].argmax(-1)
    assert ids.shape[1] <= 3 and torch.equal(ids[:, 0], expected)
