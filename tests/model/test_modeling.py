"""MllmReIDModel: compared with native LLaVA, the modules that run, saving and loading."""

import os
from functools import partial

import pytest
import torch
from transformers import AutoModel, AutoProcessor, LlavaForConditionalGeneration
from without_package import run_without_package

from modeling_mllmreid.model import (
    MllmReIDConfig,
    MllmReIDModel,
    MllmReIDProcessor,
    MllmReIDVisionModel,
    mllm_forward,
)
from modeling_mllmreid.model.heads import ReIDHead


def test_the_image_branch_equals_native_llava(make_model, make_batch):
    model, batch = make_model().eval(), make_batch()
    llava = model.mllm.model
    # Native LLaVA does not pass the interpolation on by itself.
    llava.get_image_features = partial(llava.get_image_features, interpolate_pos_encoding=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    native = model.mllm(**inputs, pixel_values=batch["pixel_values"])
    output = model(**batch)
    assert output.loss_parts["lm_image"] == pytest.approx(native.loss.item(), rel=1e-5)
    text = {name: batch[f"text_{name}"] for name in inputs}
    assert output.loss_parts["lm_text"] == pytest.approx(model.mllm(**text).loss.item(), rel=1e-5)


def test_the_loss_is_the_mix_of_the_logged_parts(make_model, make_batch):
    output = make_model(loss_lambda=0.4, id_weight=0.5, distillation_weight=2.0).train()(**make_batch())
    parts = {name: float(value) for name, value in output.loss_parts.items()}
    reid = sum(0.5 * parts[f"id_{name}"] + parts[f"triplet_{name}"] for name in ("llm", "vision")) / 2
    language = (parts["lm_image"] + parts["lm_text"]) / 2 + 2.0 * parts["lm_distillation"]
    assert output.loss.item() == pytest.approx(0.6 * language + 0.4 * reid, rel=1e-5)


def test_a_native_checkpoint_loads_with_nothing_new_but_the_head(make_llava, tmp_path):
    native = make_llava(seed=3)
    native.save_pretrained(tmp_path)
    model = MllmReIDModel.from_mllm_pretrained(tmp_path, height=64, width=32, num_identities=5)
    expected = native.state_dict()
    state = {
        name.removeprefix("mllm."): value for name, value in model.state_dict().items() if name.startswith("mllm.")
    }
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert torch.equal(model.mllm.lm_head.weight, native.lm_head.weight)
    assert {name.split(".")[0] for name in model.state_dict()} == {"mllm", "reid_head"}
    assert 0 < model.reid_head["llm"].classifier.weight.std() < 0.01
    assert torch.equal(model.reid_head["vision"].bottleneck.running_var, torch.ones(32))


def test_another_kind_of_model_is_refused(make_llava):
    with pytest.raises(ValueError, match="'llama' is no known family of multimodal LLMs: give a model of llava, "):
        MllmReIDModel.from_mllm(make_llava().model.language_model)


def test_save_and_reload_gives_the_same_features(make_model, make_batch, tmp_path, tiny_processor):
    model, pixels = make_model(test_feature="concat").eval(), make_batch()["pixel_values"]
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    loaded, info = MllmReIDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.encode_images(pixels), model.encode_images(pixels))
    assert isinstance(AutoModel.from_pretrained(tmp_path), MllmReIDModel)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, MllmReIDProcessor)
    assert processor.image_prompt_ids() == tiny_processor.image_prompt_ids()
    native = LlavaForConditionalGeneration.from_pretrained
    model.mllm.save_pretrained(tmp_path / "native")
    assert torch.equal(native(tmp_path / "native").lm_head.weight, model.mllm.lm_head.weight)


CLEAN_PROCESS = """
import sys
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
try:
    import modeling_mllmreid
    raise SystemExit("the package can be imported")
except ImportError:
    pass
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert config.model_type == "mllmreid" and type(model).__name__ == "MllmReIDModel"
image = Image.linear_gradient("L").convert("RGB").resize((50, 90))
embedding = model.encode_images(processor(images=[image])["pixel_values"])
stock = pipeline("image-feature-extraction", model=folder, trust_remote_code=True, device="cpu")
torch.testing.assert_close(stock(image, return_tensors=True), embedding, atol=1e-6, rtol=0)
torch.save(embedding, folder + "/got.pt")
"""


def test_saved_files_are_readable_by_their_owner_only(make_model, tmp_path):
    before = os.umask(0o022)
    try:
        model = make_model()
        model.save_pretrained(tmp_path / "full")
        MllmReIDVisionModel.from_reid_model(model).save_pretrained(tmp_path / "vision")
        open_to_all = [p for p in tmp_path.rglob("*") if p.stat().st_mode & 0o077]
        assert not open_to_all and (tmp_path / "vision" / "config.json").is_file()
    finally:
        os.umask(before)


def test_a_checkpoint_loads_where_the_package_is_absent(make_model, tiny_processor, tmp_path):
    from PIL import Image

    model = make_model().eval()
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    run_without_package(CLEAN_PROCESS, tmp_path, folder=tmp_path)
    image = Image.linear_gradient("L").convert("RGB").resize((50, 90))
    expected = model.encode_images(tiny_processor(images=[image])["pixel_values"])
    assert torch.allclose(torch.load(tmp_path / "got.pt"), expected, atol=1e-6)


def test_embeddings_run_no_lm_head_and_end_after_the_image(make_model, make_batch, count_calls):
    model, batch = make_model(feature_after_bn=False).eval(), make_batch()
    lm_head, lengths = count_calls(model.mllm.lm_head), []
    model.mllm.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    embedding = model.encode_images(batch["pixel_values"])
    assert lm_head.calls == 0 and lengths == [len(model.config.image_prefix_ids) + 8]
    # Causal attention: the feature cannot see the text after the image.
    whole = torch.nn.functional.normalize(model(**batch).features["llm"], dim=-1)
    assert torch.allclose(embedding, whole, atol=1e-6)
    assert embedding.dtype == torch.float32
    assert torch.allclose(embedding.norm(dim=1), torch.ones(8), atol=1e-6)


def test_the_vision_feature_needs_no_language_model(make_model, make_batch, count_calls):
    model = make_model(test_feature="vision").eval()
    language = count_calls(model.mllm.model.language_model)
    model.encode_images(make_batch()["pixel_values"])
    assert language.calls == 0


def test_lambda_one_computes_no_logits(make_model, make_batch, count_calls):
    model = make_model(loss_lambda=1.0)
    lm_head = count_calls(model.mllm.lm_head)
    output = model(**make_batch())
    assert lm_head.calls == 0 and output.language_loss_sums is None and output.loss.isfinite()


def test_losses_on_people_need_neither_labels_nor_texts(make_model, make_batch):
    batch = make_batch()
    images = {"pixel_values": batch["pixel_values"], "person_ids": batch["person_ids"]}
    texts = {name: batch[f"text_{name}"] for name in ("input_ids", "attention_mask", "caption_mask")}
    texts = {f"text_{name}": values for name, values in texts.items()}
    for loss_lambda in (0.4, 1.0):
        plain, model = (make_model(loss_lambda=loss_lambda, reid_text=on).train() for on in (False, True))
        expected = plain(**images)
        assert expected.loss_parts.keys() == {"id_llm", "id_vision", "triplet_llm", "triplet_vision"}
        assert torch.equal(expected.loss, loss_lambda * expected.reid_loss)
        # Texts count only if the configuration uses them and the batch has them.
        for output in (plain(**images, **texts), model(**images)):
            assert output.text_features is None and output.captioned is None and output.language_loss_sums is None
            torch.testing.assert_close(output.loss, expected.loss)
        assert "contrastive_text" in model(**images, **texts).loss_parts
        assert plain(**texts, pixel_values=batch["pixel_values"]).loss is None


def test_lambda_zero_computes_no_reid_loss(make_model, make_batch):
    output = make_model(loss_lambda=0.0)(**make_batch())
    assert output.reid_loss is None and set(output.loss_parts) == {"lm_image", "lm_text"}


def test_logits_are_computed_at_label_positions_only(make_model, make_batch):
    model, batch, positions = make_model(), make_batch(), []
    model.mllm.lm_head.register_forward_hook(lambda _, args, out: positions.append(out.shape[0]))
    model(**batch)
    assert positions == [int((batch[name] != -100).sum()) for name in ("labels", "text_labels")]


@pytest.mark.parametrize("layer", [1, 0, -2])
def test_an_earlier_layer_is_pooled_and_the_rest_is_not_run(make_model, make_batch, count_calls, layer):
    model, batch = make_model(llm_layer=layer, feature_after_bn=False).eval(), make_batch()
    language = model.mllm.model.language_model
    blocks, views = [count_calls(block) for block in language.layers], []
    # Also for a language model that runs all of its blocks, whatever its configuration has.
    language.register_forward_pre_hook(lambda module, args: views.append(len(module.layers)))
    short = model.encode_images(batch["pixel_values"])
    index = layer if layer >= 0 else len(language.layers) + 1 + layer
    assert [block.calls for block in blocks] == [1] * index + [0] * (2 - index) and views == [index]
    whole = torch.nn.functional.normalize(model(**batch).features["llm"], dim=-1)
    assert torch.allclose(short, whole, atol=1e-6)
    assert len(language.layers) == 2 and language.config.num_hidden_layers == 2


@pytest.mark.parametrize(("fields", "read"), [({}, [3]), ({"vision_layer": 1}, [1, 3])])
def test_hidden_states_of_the_visual_encoder_that_nothing_reads_are_not_kept(make_model, make_batch, fields, read):
    model, pixels = make_model(**fields).eval(), make_batch()["pixel_values"]
    states = model.run_tower(pixels).states
    every = model.mllm.model.vision_tower(
        pixels, interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states
    assert [i for i, state in enumerate(states) if state is not None] == read and len(states) == len(every)
    assert all(torch.equal(states[i], every[i]) for i in read)
    form = MllmReIDVisionModel.from_reid_model(model)
    kept = []
    form.tower.register_forward_hook(lambda module, args, output: kept.extend(output.hidden_states))
    form.encode_images(pixels)
    assert [state is not None for state in kept] == [False] * (len(kept) - 1) + [True]


@pytest.mark.parametrize(("layer", "kept"), [(-1, None), (1, [1])])
def test_the_language_model_keeps_no_state_that_nothing_reads(make_model, make_batch, layer, kept):
    model, batch, seen = make_model(llm_layer=layer).eval(), make_batch(), []
    model.mllm.model.language_model.register_forward_hook(lambda module, args, output: seen.append(output))
    model(**batch)
    model(batch["pixel_values"])
    assert len(seen) == 3 and all(output.past_key_values is None for output in seen)
    for output, layers in zip(seen, (kept, kept, None), strict=True):
        states = output.hidden_states
        assert (None if states is None else [i for i, state in enumerate(states) if state is not None]) == layers


def test_frozen_modules_run_without_a_graph(make_model, make_batch):
    model = make_model()
    model.mllm.requires_grad_(False)
    features = model(**make_batch()).features
    assert not features["llm"].requires_grad and not features["vision"].requires_grad
    model.mllm.model.multi_modal_projector.requires_grad_(True)
    features = model(**make_batch()).features
    assert features["llm"].requires_grad and not features["vision"].requires_grad


@pytest.mark.parametrize("reid_on", ["llm", "vision", "both"])
def test_each_head_can_be_selected_and_reaches_the_visual_encoder(make_model, make_batch, reid_on):
    model = make_model(reid_on=reid_on, loss_lambda=1.0)
    output = model(**make_batch())
    assert set(output.id_logits) == set(model.config.reid_heads)
    output.loss.backward()
    tower = model.mllm.model.vision_tower
    assert tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    reached = model.mllm.model.multi_modal_projector.linear_1.weight.grad is not None
    assert reached == (reid_on != "vision")


@pytest.mark.parametrize("fields", [{"distillation_weight": 0.5, "llm_layer": 1}, {"loss_lambda": 1.0}])
def test_texts_in_two_halves_by_length_give_the_same_losses_and_gradients(make_model, make_batch, monkeypatch, fields):
    batch, results, lengths = make_batch(32), [], []
    widths = batch["text_attention_mask"].sum(dim=1)
    longest = (widths == widths.max()).nonzero().flatten()
    for index in longest[1:].tolist():
        # Only one text is the longest of all: the others lose their last target.
        batch["text_attention_mask"][index, -1] = 0
        for name in ("labels", "text_labels"):
            batch[name][index, (batch[name][index] != -100).nonzero()[-1]] = -100
    # A token that is masked out is read by no other one.
    batch["text_attention_mask"][int(widths.argmin()), 5] = 0
    for number in (32, 33):
        monkeypatch.setattr(mllm_forward, "TEXTS_TO_HALVE", number)
        model = make_model(reid_text=True, **fields).double().train()
        seen: list[int] = []
        run = model.run_language_model

        def spy(embeddings, attention_mask, image=None, *, run=run, seen=seen, **options):
            seen += [embeddings.shape[1]] if image is None else []
            return run(embeddings, attention_mask, image, **options)

        monkeypatch.setattr(model, "run_language_model", spy)
        output = model(**batch)
        output.loss.backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        lengths.append(seen)
    (halved, ours), (plain, theirs) = results
    widths = batch["text_attention_mask"].sum(dim=1).sort().values
    assert lengths == [[int(widths[15]), int(widths[31])], [int(widths[31])]] and widths[15] < widths[31]
    assert halved.label_counts == plain.label_counts and halved.loss_parts.keys() == plain.loss_parts.keys()
    for name, value in plain.loss_parts.items():
        assert torch.allclose(halved.loss_parts[name], value, rtol=1e-9, atol=0), name
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-7, atol=1e-9), name


def test_text_losses_need_the_llm_head(make_model):
    with pytest.raises(ValueError, match="reid_text acts on the LLM's feature"):
        make_model(reid_text=True, reid_on="vision")


def test_generate_reads_the_image(make_model, make_batch, tiny_processor):
    model, batch = make_model().eval(), make_batch()
    prompt = torch.tensor([tiny_processor.image_prompt_ids()] * 2)
    ids = model.generate(prompt, batch["pixel_values"][:2], max_new_tokens=4, do_sample=False)
    embeddings = model.embed_with_image(prompt, model.project_image(model.run_tower(batch["pixel_values"][:2])))
    first = model.mllm(inputs_embeds=embeddings).logits[:, -1].argmax(-1)
    assert ids.shape[1] <= 4 and torch.equal(ids[:, 0], first)


def test_another_prompt_than_the_stored_one_is_refused(make_model, make_batch):
    model, batch = make_model(), make_batch()
    batch["input_ids"][0, 0] += 1
    with pytest.raises(ValueError, match="must start with image_prefix_ids and 8 image tokens"):
        model(**batch)


def test_the_classifier_is_remade_and_dropped(make_model, make_batch):
    model = make_model()
    model.set_num_identities(9)
    assert model.reid_head["vision"].classifier.weight.shape == (9, 32) and model.config.num_identities == 9
    model.set_num_identities(0)
    assert not any("classifier" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="call set_num_identities"):
        model(**make_batch())


def test_a_remade_classifier_starts_near_zero_on_the_given_device():
    head = ReIDHead(8, 3)
    torch.manual_seed(0)
    head.remake_classifier(400)
    assert float(head.classifier.weight.detach().std()) == pytest.approx(0.001, rel=0.05)
    head.remake_classifier(5, torch.device("meta"))
    assert head.classifier.weight.device.type == "meta" and head.classifier.weight.shape == (5, 8)


def test_sizes_must_be_multiples_of_the_patch():
    with pytest.raises(ValueError, match="256 x 128; both must be multiples of 14, .* give 252 x 126"):
        MllmReIDConfig(height=256, width=128)
    assert MllmReIDConfig().num_image_tokens == 162


def test_the_head_stays_in_float32_under_autocast():
    head = ReIDHead(8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after, logits = head(torch.randn(4, 8, dtype=torch.bfloat16))
    assert after.dtype == logits.dtype == torch.float32
    assert head.bottleneck.bias is None and head.classifier.bias is None


def test_a_checkpoint_in_bfloat16_keeps_its_head_and_its_embeddings_in_float32(make_model, make_batch, tmp_path):
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    loaded = MllmReIDModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert loaded.mllm.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.reid_head.parameters()} == {torch.float32}
    pixels = make_batch()["pixel_values"]
    embeddings = loaded.encode_images(pixels)
    assert embeddings.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(embeddings, model.encode_images(pixels)).min() > 0.99


def test_pixels_alone_give_the_embedding(make_model, make_batch):
    pixels = make_batch()["pixel_values"]
    for fields in ({"test_feature": "concat"}, {"reid_on": "vision"}, {"reid_on": "llm", "test_feature": "vision"}):
        model = make_model(**fields).eval()
        output = model(pixels)
        assert torch.equal(output[0], model.encode_images(pixels)) and output.loss is None
        assert set(output.features) == {"llm", "vision"}


def test_pixels_alone_run_the_language_model_only_where_its_feature_is_read(make_model, make_batch, count_calls):
    pixels = make_batch()["pixel_values"]
    for fields, runs in (
        ({"reid_on": "vision", "test_feature": "vision"}, 0),
        ({"reid_on": "vision", "test_feature": "llm"}, 1),
        ({"reid_on": "llm", "test_feature": "vision"}, 1),
    ):
        model = make_model(**fields).eval()
        language = count_calls(model.mllm.model.language_model)
        features = model(pixels).features
        assert language.calls == runs and ("llm" in features) == bool(runs) and "vision" in features


def test_generate_without_an_image_continues_the_text(make_model, tiny_processor):
    model = make_model().eval()
    prompt = torch.tensor([tiny_processor.text_prompt_ids("a man with a red shirt .")])
    ids = model.generate(prompt, max_new_tokens=4, do_sample=False)
    embeddings = model.get_input_embeddings()(prompt)
    assert torch.equal(ids[:, 0], model.mllm(inputs_embeds=embeddings).logits[:, -1].argmax(-1))
