"""Contract of every encoder without a language model: stock states, tall crops, gradients, saving, mistakes."""

import json

import pytest
import torch
from encoders import ENCODERS, PREFIX, SQUARE, TIMM, has_timm, write_encoder, write_timm
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from modeling_mllmreid.model import MllmReIDVisionConfig, MllmReIDVisionModel, MllmReIDVisionProcessor
from modeling_mllmreid.model.encoders import vision_part
from modeling_mllmreid.model.reid_osnet import ReIDOSNetConfig
from modeling_mllmreid.model.reid_resnet import ReIDResNetConfig

IDS = torch.tensor([0, 0, 1, 1])
needs_timm = pytest.mark.skipif(not has_timm(), reason="needs timm, which needs torchvision")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """folders(kind): an encoder on disk."""
    root = tmp_path_factory.mktemp("encoders")
    return lambda kind: root / kind if (root / kind).exists() else write_encoder(root / kind, kind)


def crops(height: int, width: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def stock_states(folder, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """The final states of the stock model's own forward pass, (B, prefix + N, D)."""
    model = AutoModel.from_pretrained(folder).eval()
    if kind == "siglip2":
        patches = [torch.from_numpy(convert_image_to_patches(image.numpy(), 16)) for image in pixels]
        shapes = torch.tensor([[pixels.shape[2] // 16, pixels.shape[3] // 16]] * len(pixels))
        mask = torch.ones(len(pixels), len(patches[0]))
        return model.vision_model(torch.stack(patches), mask, shapes).last_hidden_state
    if kind == "clip":
        vision_model = model.vision_model
        return vision_model.post_layernorm(vision_model(pixels).last_hidden_state)
    output = (model.vision_model if kind == "siglip" else model)(pixels).last_hidden_state
    return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output


@pytest.mark.parametrize("config", [ReIDResNetConfig(ibn=True), ReIDOSNetConfig()], ids=["resnet", "osnet"])
def test_convolutions_start_by_the_rule_of_he(config):
    model = AutoModel.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 4 and weight.numel() > 5000:
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    assert {part.weight.min().item() for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {1.0}


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
def test_states_are_the_stock_models(kind, folders):
    side = SQUARE.get(kind, 64)
    pixels, folder = crops(side, side), folders(kind)
    model = MllmReIDVisionModel.from_encoder_pretrained(folder, height=side, width=side)
    expected, output = stock_states(folder, kind, pixels), model.run_tower(pixels)
    torch.testing.assert_close(output.last, expected, atol=1e-6, rtol=1e-5)
    prefix = PREFIX.get(kind, 0)
    assert expected.shape[1] == prefix + output.grid[0] * output.grid[1]
    assert expected.shape[2] == model.config.tower.size == model.feature_size
    torch.testing.assert_close(model.pool_vision(output), expected[:, prefix:].mean(dim=1), atol=1e-5, rtol=1e-5)
    if prefix and kind != "dinov3_convnext":  # whose first state is a mean
        classes = MllmReIDVisionModel.from_encoder_pretrained(folder, height=side, width=side, pooling="class")
        torch.testing.assert_close(classes.pool_vision(output), expected[:, 0])
        stock = AutoModel.from_pretrained(folder).eval()
        pooled = (stock.vision_model if kind == "clip" else stock)(pixels).pooler_output
        # ViT and DeiT have a layer of their own after the class token, which is left out.
        if kind not in ("vit", "deit"):
            torch.testing.assert_close(classes.pool_vision(output), pooled, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_tall_crop_trains_every_block_and_comes_back(kind, folders, tmp_path):
    folder = folders(kind)
    model = MllmReIDVisionModel.from_encoder_pretrained(folder, num_identities=2)
    processor = MllmReIDVisionProcessor.from_encoder_pretrained(folder)
    config = model.config
    assert (config.height, config.width) == (252, 126) if kind in SQUARE else (256, 128)
    assert (processor.height, processor.width) == (config.height, config.width)
    pixels = crops(config.height, config.width).requires_grad_()
    output = model.train()(pixels, IDS)
    assert torch.isfinite(output.loss) and output.id_logits["vision"].shape == (4, 2)
    assert sorted(output.loss_parts) == ["id_vision", "triplet_vision"]
    output.loss.backward()
    # Every crop has a gradient at every patch.
    patch = config.tower.patch
    reached = torch.nn.functional.max_pool2d(pixels.grad.abs().amax(dim=1, keepdim=True), patch)
    assert reached.min() > 0
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    image = Image.linear_gradient("L").convert("RGB").resize((50, 90))
    inputs = processor(images=[image, image.rotate(180)])["pixel_values"]
    assert torch.equal(again(images=[image, image.rotate(180)])["pixel_values"], inputs)
    with torch.no_grad():
        expected = model.encode_images(inputs)
        torch.testing.assert_close(loaded.encode_images(inputs), expected, atol=1e-6, rtol=0)
        assert (expected[0] - expected[1]).abs().max() > 1e-6
        torch.testing.assert_close(model(inputs).image_embeds, expected, atol=1e-6, rtol=0)
        assert model.encode_images(inputs[:0]).shape == (0, model.feature_size)
    # A resumed training reads exactly these weights.
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["model_type"] != config.model_type
    loaded.reid_head.classifier.weight.data.zero_()
    loaded.load_weights(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_pixels_have_the_encoders_own_mean_and_deviation(folders):
    processor = MllmReIDVisionProcessor.from_encoder_pretrained(folders("dinov3_vit"), height=64, width=32)
    pixels = processor(images=[Image.new("RGB", (40, 90), (102, 153, 204))])["pixel_values"]
    colours = torch.tensor([(102 / 255 - 0.4) / 0.2, (153 / 255 - 0.5) / 0.25, (204 / 255 - 0.6) / 0.3])
    torch.testing.assert_close(pixels, colours.view(1, 3, 1, 1).expand(1, 3, 64, 32), atol=1e-5, rtol=1e-5)
    assert processor.image_processor.resample == 2  # bilinear, from the file


@needs_timm
@pytest.mark.parametrize("architecture", TIMM)
def test_encoders_of_timm(architecture, tmp_path):
    import timm

    folder = write_timm(tmp_path / "timm", architecture)
    square = MllmReIDVisionModel.from_encoder_pretrained(folder, height=224, width=224)
    stock = timm.create_model(architecture, num_classes=0, **TIMM[architecture]).eval()
    weights = {name.removeprefix("tower.timm_model."): w for name, w in square.state_dict().items()}
    stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
    with torch.no_grad():
        expected = stock.forward_features(crops(224, 224))
        if expected.ndim == 4:
            expected = expected.flatten(1, 2) if expected.shape[3] == square.feature_size else expected.flatten(2).mT
        torch.testing.assert_close(square.run_tower(crops(224, 224)).last, expected, atol=1e-6, rtol=1e-5)
    model = MllmReIDVisionModel.from_encoder_pretrained(folder, num_identities=2)
    processor = MllmReIDVisionProcessor.from_encoder_pretrained(folder)
    assert list(processor.image_processor.image_mean) == [0.4, 0.5, 0.6] and processor.image_processor.resample == 2
    pixels = crops(model.config.height, model.config.width).requires_grad_()
    model.train()(pixels, IDS).loss.backward()
    assert pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    model.eval().save_pretrained(tmp_path / "ours")
    loaded = AutoModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_images(pixels), model.encode_images(pixels), atol=1e-6, rtol=0)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_form_of_version_0_1_0_reads_the_last_block_before_the_norm(make_model, make_batch, tmp_path):
    model, pixels = make_model().eval(), make_batch()["pixel_values"]
    MllmReIDVisionModel.from_reid_model(model).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    old = ("vision_config", "height", "width", "bnneck", "feature_after_bn", "test_feature", "trained_on", "model_type")
    fields = {name: fields[name] for name in old} | {"class_token": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = MllmReIDVisionModel.from_pretrained(tmp_path).eval()
    expected = model.image_features(pixels, ("vision",))["vision"]
    with torch.no_grad():
        assert torch.equal(loaded.encode_images(pixels), expected)
        loaded.config.dropped_states = 0  # class_token: false
        assert not torch.allclose(loaded.encode_images(pixels), expected, atol=1e-4)
    assert MllmReIDVisionConfig.from_dict({**fields, "class_token": False}).dropped_states == 0
    assert loaded.config.exported and "class_token" not in loaded.config.to_dict()


def test_a_lora_is_stored_loaded_and_merged(folders, tmp_path):
    model = MllmReIDVisionModel.from_encoder_pretrained(folders("dinov2"), height=56, width=28).eval()
    plain = model.encode_images(crops(56, 28))
    names = [name for name, module in model.tower.named_modules() if isinstance(module, torch.nn.Linear)]
    model.add_lora({"target_modules": names, "r": 2, "lora_alpha": 4, "lora_dropout": 0.0})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.5)
        expected = model.encode_images(crops(56, 28))
        assert (expected - plain).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        loaded = MllmReIDVisionModel.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded.encode_images(crops(56, 28)), expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged.encode_images(crops(56, 28)), expected, atol=1e-5, rtol=0)
    assert merged.config.lora_modules is None and not [name for name in merged.state_dict() if "lora" in name]


def test_a_frozen_encoder_keeps_its_batch_statistics(folders):
    model = MllmReIDVisionModel.from_encoder_pretrained(folders("resnet"), height=64, width=64, num_identities=2)
    before = {name: value.clone() for name, value in model.tower.named_buffers()}
    model.tower.requires_grad_(False)
    model.train()(crops(64, 64), IDS)
    assert all(torch.equal(value, before[name]) for name, value in model.tower.named_buffers())
    assert model.reid_head.bottleneck.running_mean.abs().max() > 0
    model.tower.requires_grad_(True)
    model.train()(crops(64, 64), IDS)
    assert not all(torch.equal(value, before[name]) for name, value in model.tower.named_buffers())


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", "'bert' encodes no images: give a vision encoder"),
        ("wav2vec2", "'wav2vec2' encodes no images: give a vision encoder"),
        ("mllama", "'mllama' is a multimodal LLM of no known family"),
        ("detr", "'detr' has no patches of one size: give another vision encoder"),
    ],
)
def test_other_models_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        vision_part(AutoConfig.for_model(kind))


def test_encoders_that_do_not_fit_are_refused(folders, tmp_path):
    folder = folders("vit")
    for fields, message in (
        ({"height": 100}, "100 x 128; both must be multiples of 16, .* give 96 x 128"),
        ({"pooling": "max"}, "pooling is 'max'; give 'class' or 'mean' or 'gem' or 'class_mean'"),
        ({"loss_lambda": 0.7}, "loss_lambda is 0.7: an encoder without a language model has none: leave it out"),
        ({"reid_on": "both"}, "reid_on is 'both': an encoder without a language model has none"),
        ({"reid_text": True}, "reid_text is True: an encoder without a language model has none"),
        ({"llm_layer": -2}, "llm_layer is -2: an encoder without a language model has none"),
        ({"pair_weight": 1}, "pair_weight is 1: an encoder without a language model has none: leave it out"),
        ({"vision_layer": 5}, "vision_layer is 5; of 2 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            MllmReIDVisionModel.from_encoder_pretrained(folder, **fields)
    only = {"loss_lambda": 1, "reid_on": "vision", "reid_text": False, "distillation_weight": 0}
    config = MllmReIDVisionModel.from_encoder_pretrained(folder, height=64, width=32, **only).config
    assert (config.loss_lambda, config.reid_heads, config.reid_text) == (1.0, ("vision",), False)
    # A form of our own takes and refuses the same fields.
    assert MllmReIDVisionModel.from_pretrained("pedestrians-small", **only).config.reid_heads == ("vision",)
    for name, value in (("pair_weight", 1), ("loss_lambda", 0.7), ("reid_text", True)):
        with pytest.raises(ValueError, match=f"^{name} is {value}: an encoder without a language model has none"):
            MllmReIDVisionModel.from_pretrained("pedestrians-small", **{name: value})
    for kind in ("siglip", "convnext"):
        with pytest.raises(ValueError, match=r"pooling is 'class', and '\w+' has no class token: give 'mean' or 'gem'"):
            MllmReIDVisionModel.from_encoder_pretrained(folders(kind), pooling="class")
    with pytest.raises(ValueError, match="vision_layer is -1: .* has no hidden states of one size: leave it out"):
        MllmReIDVisionModel.from_encoder_pretrained(folders("convnext"), vision_layer=-1)
    masked = MllmReIDVisionConfig(vision_config={**ENCODERS["vit"], "model_type": "vit_mae"}).vision_config
    masked.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'vit_mae' gives .* not one state of size 16 for each of 16 x 8 patches"):
        MllmReIDVisionModel.from_encoder_pretrained(tmp_path)
    wide = MllmReIDVisionConfig(vision_config={**ENCODERS["swin"], "model_type": "swin", "window_size": 40})
    assert (wide.height, wide.width) == (640, 320)  # a whole window in the last stage
    wide.vision_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'swin' does not encode crops of 256 x 128 .*: give another size or encoder"):
        MllmReIDVisionModel.from_encoder_pretrained(tmp_path, height=256, width=128)
    with pytest.raises(OSError, match="has no preprocessor_config.json, which holds mean and standard deviation"):
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        MllmReIDVisionProcessor.from_encoder_pretrained(tmp_path)


def test_a_broken_encoder_is_refused(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folders("vit") / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders("vit") / "config.json").read_bytes())
    missing = {name: weight for name, weight in weights.items() if not name.endswith("layernorm.weight")}
    save_file(missing, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, layernorm\.weight first: get it again"):
        MllmReIDVisionModel.from_encoder_pretrained(tmp_path)
    model = MllmReIDVisionModel.from_encoder_pretrained(folders("vit"), height=64, width=32, num_identities=2)
    other = MllmReIDVisionModel.from_encoder_pretrained(folders("deit"), height=64, width=32, num_identities=2)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="the weight .* is .*: it is another model's"):
        model.load_weights(tmp_path / "other")
