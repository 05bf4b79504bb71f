"""The contract of every family: the states of its own forward pass, tall crops, training, and all checkpoints."""

import copy
import json
from pathlib import Path

import pytest
import torch
from families import CONFIGS, IMAGE_TOKEN, PREFIX, build_native, build_reid, prompts, stock_inputs
from without_package import run_without_package

import modeling_mllmreid
from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel, MllmReIDVisionModel
from modeling_mllmreid.model.backbones import FAMILIES
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.grad_cache import cached_backward
from modeling_mllmreid.training.modules import module_of
from modeling_mllmreid.training.parameters import freeze_unused_parameters

# Families whose language model needs more than embeddings.
NEEDS_MORE = ("Gemma 3", "Qwen2.5-VL", "Qwen3-VL")
CLEAN_PROCESS = """
import json, sys
import torch
from transformers import AutoModel
root, families = sys.argv[1], json.loads(sys.argv[2])
pixels = torch.load(f"{root}/pixels.pt")
features = {}
for family in families:
    model = AutoModel.from_pretrained(f"{root}/{family}", trust_remote_code=True).eval()
    with torch.inference_mode():
        features[family] = model.encode_images(pixels[family])
torch.save(features, f"{root}/features.pt")
"""
every_family = pytest.mark.parametrize("family", CONFIGS)


def largest(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


def crops(model, count: int = 2, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, model.config.height, model.config.width, generator=generator, **options)


def test_every_family_is_tested():
    assert {fields["model_type"] for fields in CONFIGS.values()} == set(FAMILIES)


def test_no_other_file_of_the_package_depends_on_a_familys_name():
    package = Path(modeling_mllmreid.__file__).parent
    others = [path for path in package.rglob("*.py") if not path.match("model/*_*.py") or "mllmreid" in path.name]
    names = set(FAMILIES) - {"llava"}  # which the demo and `compose` make
    found = {(path.name, name) for path in others for name in names if f'"{name}' in path.read_text()}
    assert not found and len(others) > 100
    families = [path for path in (package / "model").glob("backbone_*.py") if path.stem != "backbone_loading"]
    assert all(len(path.read_text().splitlines()) <= 100 for path in families)
    assert {path.stem for path in families} == {family.__module__.split(".")[-1] for family in FAMILIES.values()}


@every_family
def test_a_square_image_has_the_states_of_the_familys_own_forward_pass(family):
    side = 64 if family == "Qwen3-VL" else 56
    model = build_reid(family, height=side, width=side)
    pixels, batch = crops(model), prompts(model, 2)
    labels = batch.pop("labels")
    with torch.inference_mode():
        image = model.project_image(model.run_tower(pixels))
        assert image.embeddings.shape[1] == model.config.num_image_tokens
        embeddings = model.embed_with_image(batch["input_ids"], image)
        states, _ = model.run_language_model(embeddings, batch["attention_mask"], image, whole=True)
        stock = model.mllm(**batch, **stock_inputs(model, pixels, batch["input_ids"]), output_hidden_states=True)
        expected, kept = stock.hidden_states[-1], batch["attention_mask"][..., None]
        assert largest((states - expected) * kept) < 1e-5 * largest(expected)
        # The shortest way, embeddings alone, is right for some families and wrong for others without an error.
        naive = model.language_model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"])
        assert (largest((naive.last_hidden_state - expected) * kept) > 0.1) == (family in NEEDS_MORE)
        # A layer of the language model below the last one is the same in the short and in the whole run.
        for layer in (1, 2):
            model.config.llm_layer = layer
            short = model.run_language_model(embeddings, batch["attention_mask"], image, whole=False)[1]
            whole = model.run_language_model(embeddings, batch["attention_mask"], image, whole=True)[1]
            assert largest((short - whole) * kept) < 1e-5 * largest(whole)
        model.config.llm_layer = -1
        output = model(pixels, **batch, labels=labels)
        nats = torch.nn.functional.cross_entropy(stock.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(output.loss_parts["lm_image"], nats, rtol=1e-5, atol=0)


@every_family
def test_text_is_generated_as_by_the_family_itself(family):
    side = 64 if family == "Qwen3-VL" else 56
    model = build_reid(family, height=side, width=side)
    pixels, ids = crops(model), prompts(model, 2)["input_ids"][:, :-5]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        written = model.generate(ids, pixels, attention_mask=torch.ones_like(ids), **options)
        stock = model.mllm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **stock_inputs(model, pixels, ids), **options
        )
        assert torch.equal(written, stock[:, ids.shape[1] :]) and written.shape == (2, 5)
        beams = {**options, "num_beams": 2, "num_return_sequences": 2, "attention_mask": torch.ones_like(ids)}
        alone = [
            model.generate(
                ids[row : row + 1], pixels[row : row + 1], **{**beams, "attention_mask": torch.ones_like(ids[:1])}
            )
            for row in range(2)
        ]
        assert torch.equal(model.generate(ids, pixels, **beams), torch.cat(alone))
        assert len(model.generate(ids[:, -2:], attention_mask=torch.ones(2, 2), **options)) == 2
        # As after a training of the tower alone, which stays in float32.
        model.mllm.to(torch.bfloat16)
        model.tower.float()
        assert len(model.generate(ids, pixels, attention_mask=torch.ones_like(ids), **options)) == 2


@every_family
def test_a_tall_crop_reaches_the_pixels_and_images_do_not_mix(family):
    model = build_reid(family, test_feature="concat")
    assert model.config.height == 2 * model.config.width
    pixels = crops(model, requires_grad=True)
    features = model.image_features(pixels, ("concat",))
    assert all(value.isfinite().all() for value in features.values())
    for name in ("llm", "vision"):
        (gradient,) = torch.autograd.grad(features[name][0].sum(), pixels, retain_graph=True)
        assert largest(gradient[0]) > 0 and not gradient[1].any(), name
    with torch.inference_mode():
        alone = model.image_features(pixels[1:], ("concat",))["concat"]
    torch.testing.assert_close(alone, features["concat"][1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"both must be multiples of \d+, .*: give \d+ x \d+$"):
        MllmReIDConfig(mllm_config=model.config.mllm_config, height=model.config.height + 1)
    with pytest.raises(ValueError, match="input_ids must start with image_prefix_ids and"):
        model(pixels.detach(), **{k: v[:, 1:] for k, v in prompts(model, 2).items()})


@every_family
def test_accumulated_and_cached_gradients_are_those_of_the_plain_step(family):
    plain = build_reid(family, llm_layer=2).double().train()
    frozen = freeze_unused_parameters(plain)
    model, accumulated = copy.deepcopy(plain), copy.deepcopy(plain)
    batch = {"pixel_values": crops(plain, 4).double(), **prompts(plain, 4), "person_ids": torch.arange(4) // 2}
    expected = plain(**batch)
    expected.loss.backward()
    # Exactly the parameters that no loss reaches are frozen.
    assert all((p.grad is None) == (name in frozen) for name, p in plain.named_parameters())
    counts = {"image": int((batch["labels"] != -100).sum())}
    cached_backward(
        model,
        batch,
        chunk=3,
        language_loss=lambda sums: (1 - model.config.loss_lambda) * model.language_loss(sums, counts),
        reid_weight=model.config.loss_lambda,
        backward=lambda part: part.backward(),
    )
    language = {name: value for name, value in batch.items() if name != "person_ids"}
    for half in (slice(0, 2), slice(2, 4)):
        sums = accumulated(**{name: value[half] for name, value in language.items()}).language_loss_sums
        ((1 - accumulated.config.loss_lambda) * accumulated.language_loss(sums, counts)).backward()
    plain_language = copy.deepcopy(plain)
    plain_language.zero_grad()
    plain_language(**language).loss.backward()
    for ours, reference in ((model, plain), (accumulated, plain_language)):
        for (name, got), (_, want) in zip(ours.named_parameters(), reference.named_parameters(), strict=True):
            if want.grad is not None:
                assert largest(got.grad - want.grad) <= 1e-5 * largest(want.grad) + 1e-14, name


@every_family
def test_a_thin_checkpoint_with_lora_on_both_loads_with_equal_features(family, tmp_path):
    native = build_native(family)
    native.save_pretrained(tmp_path / "native")
    model = MllmReIDModel.from_mllm_pretrained(tmp_path / "native", num_identities=4, image_prefix_ids=PREFIX)
    adapters = AdapterArguments(language_model="lora", tower="lora", lora_rank=2)
    backbone = str((tmp_path / "native").resolve())
    prepare_training(model, adapters, backbone=backbone, revision=None, dtype=torch.float32)
    lora = {module_of(model, name) for name, _ in model.named_parameters() if ".lora_" in name}
    trained = {module_of(model, name) for name, p in model.named_parameters() if p.requires_grad}
    assert lora == {"llm", "vision"} and trained == {"llm", "vision", "projector", "heads"}
    freeze_unused_parameters(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batch = {"pixel_values": crops(model, 4), **prompts(model, 4), "person_ids": torch.arange(4) // 2}
    losses = []
    for _ in range(4):
        loss = model.train()(**batch).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "thin")
    weights = sum(path.stat().st_size for path in (tmp_path / "thin").rglob("*.safetensors"))
    assert weights < (tmp_path / "native/model.safetensors").stat().st_size / 2
    again = MllmReIDModel.from_pretrained(tmp_path / "thin").eval()
    pixels = crops(model)
    with torch.inference_mode():
        assert torch.equal(again.encode_images(pixels), model.encode_images(pixels))


@every_family
def test_the_vision_form_of_every_family_has_the_same_feature(family, tmp_path):
    for layer in (None, 1, 0):
        model = build_reid(family, vision_layer=layer).train()
        model(crops(model, 4), person_ids=torch.arange(4) // 2)  # moves the statistics of the batch norm
        form = MllmReIDVisionModel.from_reid_model(model.eval())
        assert layer is None or form.config.tower.depth == 1
        form.save_pretrained(tmp_path / str(layer))
        pixels = crops(model)
        with torch.inference_mode():
            expected = model.image_features(pixels, ("vision",))["vision"]
            again = MllmReIDVisionModel.from_pretrained(tmp_path / str(layer)).eval()
            torch.testing.assert_close(form.encode_images(pixels), expected, rtol=0, atol=1e-6)
            assert torch.equal(again.encode_images(pixels), form.encode_images(pixels))


def test_full_checkpoints_load_in_a_clean_process_with_the_code_that_they_carry(tmp_path):
    expected, pixels = {}, {}
    for family in CONFIGS:
        model = build_reid(family)
        model.save_pretrained(tmp_path / family)
        pixels[family] = crops(model)
        with torch.inference_mode():
            expected[family] = model.encode_images(pixels[family])
    torch.save(pixels, tmp_path / "pixels.pt")
    run_without_package(CLEAN_PROCESS, tmp_path, json.dumps(list(CONFIGS)), folder=tmp_path)
    features = torch.load(tmp_path / "features.pt")
    for family, value in expected.items():
        torch.testing.assert_close(features[family], value, rtol=0, atol=1e-6)


def test_the_image_token_may_lie_outside_of_the_embeddings():
    model = build_reid("Gemma 3")
    model.config.mllm_config.image_token_id = model.mllm.config.image_token_id = 128
    batch = {name: value.masked_fill(value == IMAGE_TOKEN, 128) for name, value in prompts(model, 2).items()}
    assert model(crops(model), **batch).loss.isfinite()


def test_an_unknown_family_is_refused_with_the_known_ones():
    known = ", ".join(FAMILIES)
    with pytest.raises(ValueError, match=f"^'blip-2' is no known family .*: give a model of {known}; docs/") as e:
        MllmReIDConfig(mllm_config={"model_type": "blip-2"})
    assert "\n" not in str(e.value)


def test_the_prefix_of_the_image_is_embedded_once_for_all_images():
    """With one row for each image the gradients add up in another order: trainings have other last digits."""
    model = build_reid("LLaVA, CLIP")
    shapes = []
    model.mllm.get_input_embeddings().register_forward_hook(lambda _, ids, __: shapes.append(tuple(ids[0].shape)))
    model.encode_images(torch.rand(3, 3, model.config.height, model.config.width))
    assert shapes == [(1, len(model.config.image_prefix_ids))]
