"""Relevance of the places of a crop: against its definition, in every model, and where the answer is known."""

from colorsys import hsv_to_rgb
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import CONFIGS, build_reid
from PIL import Image, ImageFilter
from scipy.stats import spearmanr
from transformers import CLIPImageProcessor

from modeling_mllmreid import image_relevance
from modeling_mllmreid.model import MllmReIDVisionModel, MllmReIDVisionProcessor
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

_VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT |= {"image_size": 64, "patch_size": 16}
_REID_VIT = {**_VIT, "model_type": "reid_vit", "grid": [4, 2]}
_REID_VIT.pop("image_size")
# By name: the encoder, its pooling, and the expected rows and columns of a crop of 64 x 32.
VISION = {
    "class": ({"model_type": "vit", **_VIT}, "class", (4, 2)),
    "mean": ({"model_type": "vit", **_VIT}, "mean", (4, 2)),
    "gem": ({"model_type": "vit", **_VIT}, "gem", (4, 2)),
    "class_mean": ({"model_type": "clip_vision_model", **_VIT}, "class_mean", (4, 2)),
    "resnet": (
        {"model_type": "reid_resnet", "width": 4, "blocks": [1] * 4, "non_local": [0, 1, 0, 0], "ibn": True},
        "gem",
        (4, 2),
    ),
    "osnet": ({"model_type": "reid_osnet", "channels": [16, 64, 64, 64], "blocks": [1] * 3}, "mean", (4, 2)),
    "overlapping patches": ({**_REID_VIT, "stride": 12}, "class", (4, 2)),
    "parts": ({**_REID_VIT, "parts": True}, "mean", (4, 2)),
    "swin": ({"model_type": "reid_swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}, "mean", (8, 4)),
    "convnext": (
        {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "mean",
        (8, 4),
    ),
}


def processor_of(height: int, width: int) -> MllmReIDVisionProcessor:
    return MllmReIDVisionProcessor(CLIPImageProcessor(size={"height": height, "width": width}, do_center_crop=False))


def noise(height: int, width: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))


def by_definition(model, processor, name, image, target, square, epsilon) -> float:
    """The relevance of one square of pixels: the slope of the similarity as the square alone appears, averaged."""
    without = [Image.new("RGB", image.size, (level,) * 3) for level in (0, 128, 255)]
    without.append(image.filter(ImageFilter.GaussianBlur(0.15 * image.width)))
    crop, *starts = processor(images=[image, *without])["pixel_values"].double()
    slopes = []
    for start in starts:
        step = torch.zeros_like(crop)
        step[:, square[0], square[1]] = (crop - start)[:, square[0], square[1]]
        for share in (np.arange(8) + 0.5) / 8:
            point = start + share * (crop - start)
            with torch.no_grad():
                pair = model.image_features(torch.stack([point + epsilon * step, point - epsilon * step]), (name,))
            slopes.append(((pair[name] @ target)[0] - (pair[name] @ target)[1]) / (2 * epsilon))
    return float(torch.stack(slopes).mean())


def check_against_definition(model, name, grid, epsilon, tolerance) -> None:
    """Checks the grid and the relevance of a square away from the diagonal, compared with another crop."""
    height, width = model.config.height, model.config.width
    processor = processor_of(height, width)
    image, other = noise(height, width, 1), noise(height, width, 2)
    relevance = image_relevance(model, processor, image, other, feature=name)
    assert relevance.shape == grid and relevance.dtype == np.float32
    with torch.no_grad():
        target = model.image_features(processor(images=[other])["pixel_values"], (name,))[name][0]
    row, column = 1, grid[1] - 1
    square = [
        slice(place * side // count, (place + 1) * side // count)
        for place, side, count in zip((row, column), (height, width), grid, strict=True)
    ]
    expected = by_definition(model, processor, name, image, target, square, epsilon)
    assert abs(relevance[row, column] - expected) < tolerance * np.abs(relevance).max()


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_has_the_relevance_of_the_definition(family):
    side = 32 if family == "Qwen3-VL" else 28
    model = build_reid(family, height=3 * side, width=2 * side).double()
    for name, size in (("llm", model.backbone.unit), ("vision", model.backbone.tower.patch)):
        # Some norms compute in float32, whatever the model's format is.
        check_against_definition(model, name, (3 * side // size, 2 * side // size), 1e-3, 0.01)


@pytest.mark.parametrize("name", VISION)
def test_every_encoder_and_pooling_has_the_relevance_of_the_definition(name):
    vision, pooling, grid = VISION[name]
    torch.manual_seed(0)
    config = MllmReIDVisionModel.config_class(vision_config=vision, height=64, width=32, pooling=pooling)
    model = MllmReIDVisionModel(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    check_against_definition(model, "vision", grid, 1e-6, 1e-3)


# ---- where the answer is known -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    """The model of the package, and two photos of each of eight rendered people, from two cameras."""
    root = tmp_path_factory.mktemp("people") / "world"
    sizes = {"test_identities": 8, "scenes": 12, "cameras": 2, "images_per_camera": 2}
    write_pedestrians(root, train_identities=0, captions_per_image=0, processes=1, size=(128, 64), **sizes)
    photos = [Image.open(path).convert("RGB") for path in sorted((root / "query").glob("*.jpg"))]
    return SimpleNamespace(
        model=MllmReIDVisionModel.from_pretrained("pedestrians-small").eval(),
        processor=MllmReIDVisionProcessor.from_pretrained("pedestrians-small"),
        photos=list(zip(photos[0::2], photos[1::2], strict=True)),
    )


def pasted(photo: Image.Image, cell: tuple[int, int], colour: tuple[int, ...]) -> Image.Image:
    """A photo with a patch of two by two cells of 16 pixels."""
    result = photo.copy()
    result.paste(colour, (16 * cell[1], 16 * cell[0], 16 * cell[1] + 32, 16 * cell[0] + 32))
    return result


def peaks_in(relevance: np.ndarray, cell: tuple[int, int]) -> bool:
    row, column = np.unravel_index(int(relevance.argmax()), relevance.shape)
    return 0 <= row - cell[0] <= 1 and 0 <= column - cell[1] <= 1


def test_a_patch_that_alone_distinguishes_two_photos_is_what_differs(small):
    rng, hits = np.random.default_rng(0), []
    for photo, _ in small.photos:
        cell = (int(rng.integers(7)), int(rng.integers(3)))
        colour = rng.integers(0, 256, 3)
        one, two = (pasted(photo, cell, tuple(map(int, values))) for values in (colour, 255 - colour))
        for other in (two, photo):
            hits.append(peaks_in(-image_relevance(small.model, small.processor, one, other), cell))
    # Of two patches, and of a patch and none.
    assert np.mean(hits[0::2]) >= 0.7 and np.mean(hits[1::2]) >= 0.8


def occlusion(small: SimpleNamespace, photo: Image.Image, other: Image.Image | None) -> np.ndarray:
    """The similarity that is lost as a cell is covered by black, grey, white or the blurred photo, on average."""
    pictures = [photo.copy()]
    for fill in (*(Image.new("RGB", photo.size, (level,) * 3) for level in (0, 128, 255)), None):
        fill = photo.filter(ImageFilter.GaussianBlur(0.15 * photo.width)) if fill is None else fill
        for row, column in np.ndindex(8, 4):
            box = (16 * column, 16 * row, 16 * column + 16, 16 * row + 16)
            pictures.append(photo.copy())
            pictures[-1].paste(fill.crop(box), box)
    pictures.append(photo if other is None else other)
    with torch.inference_mode():
        features = small.model.encode_images(small.processor(images=pictures)["pixel_values"])
    similarity = (features @ features[-1])[:-1]
    return (similarity[0] - similarity[1:].view(4, 8, 4).mean(dim=0)).numpy()


@pytest.mark.slow
def test_relevance_agrees_with_occlusion_over_rendered_people(small):
    agreement = {}
    for name in ("itself", "same person"):
        ranks = []
        for photo, same in small.photos[:6]:
            other = None if name == "itself" else same
            relevance = image_relevance(small.model, small.processor, photo, other)
            ranks.append(spearmanr(relevance.ravel(), occlusion(small, photo, other).ravel()).statistic)
        agreement[name] = float(np.mean(ranks))
    assert agreement["itself"] > 0.4 and agreement["same person"] > 0.3, agreement


COLOURS = [tuple(round(255 * value) for value in hsv_to_rgb(hue / 8, 0.9, 0.8)) for hue in range(8)]


def patched_noise(count: int, seed: int) -> tuple[list[Image.Image], list[tuple[int, int]], torch.Tensor]:
    """Crops of noise, 64 x 32, with a patch of one cell of 16 pixels, whose colour is the person's: eight people."""
    rng, crops, cells = np.random.default_rng(seed), [], []
    people = torch.arange(count) // 2 % len(COLOURS)
    for index, person in enumerate(people.tolist()):
        crop, cell = noise(64, 32, 1000 * seed + index), (int(rng.integers(4)), int(rng.integers(2)))
        crop.paste(COLOURS[person], (16 * cell[1], 16 * cell[0], 16 * cell[1] + 16, 16 * cell[0] + 16))
        crops.append(crop)
        cells.append(cell)
    return crops, cells, people


def trained_on_patches(model, processor) -> None:
    """Trains a model to tell the people of `patched_noise` apart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    crops, _, people = patched_noise(512, 1)
    pixels = processor(images=crops)["pixel_values"]
    model.train()
    for step in range(150):
        batch = slice(32 * (step % 16), 32 * (step % 16) + 32)
        loss = model(pixel_values=pixels[batch], person_ids=people[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("feature", ["llm", "vision", "class"])
def test_a_trained_model_looks_at_the_patch_that_alone_distinguishes_people(feature, make_model):
    processor = processor_of(64, 32)
    torch.manual_seed(0)
    if feature == "class":
        vision = {"model_type": "vit", **_VIT, "hidden_size": 32}
        model = MllmReIDVisionModel(
            MllmReIDVisionModel.config_class(
                vision_config=vision, height=64, width=32, pooling="class", num_identities=len(COLOURS)
            )
        )
    else:
        model = make_model(reid_on=feature, test_feature=feature, loss_lambda=1.0, num_identities=len(COLOURS))
    trained_on_patches(model, processor)
    crops, cells, _ = patched_noise(24, 2)
    found = [image_relevance(model, processor, crop) for crop in crops]
    hits = [np.unravel_index(int(r.argmax()), r.shape) == cell for r, cell in zip(found, cells, strict=True)]
    # By chance it is one of eight.
    assert np.mean(hits) >= 0.7


# ---- mistakes ----------------------------------------------------------------------------------------------------


def test_another_crop_and_its_feature_are_the_same(small, tmp_path):
    (photo, same), model, processor = small.photos[0], small.model, small.processor
    same.save(tmp_path / "same.png")
    with torch.inference_mode():
        feature = model.encode_images(processor(images=[same])["pixel_values"])[0]
        expected = image_relevance(model, processor, photo, same)
    for other in (tmp_path / "same.png", 3 * feature, feature.numpy()):
        found = image_relevance(model, processor, photo, other, batch_size=5)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not model.training and not any(p.grad is not None for p in model.parameters())


def test_mistakes(small, tmp_path):
    photo, model, processor = small.photos[0][0], small.model, small.processor
    for other in (np.ones(5, dtype=np.float32), np.zeros(768, dtype=np.float32), np.full(768, np.nan)):
        with pytest.raises(UserError, match="^other: of shape .* has 768 finite numbers, .*: give a feature of this"):
            image_relevance(model, processor, photo, other)
    with pytest.raises(UserError, match="^feature 'llm': a vision form has the feature 'vision' alone"):
        image_relevance(model, processor, photo, feature="llm")
    with pytest.raises(UserError, match=r"gone\.jpg: no such image"):
        image_relevance(model, processor, tmp_path / "gone.jpg")


def test_an_onnx_file_is_refused(small):
    from modeling_mllmreid.evaluation.onnx_encoder import load_onnx
    from modeling_mllmreid.model.shipped_models import PRETRAINED
    from modeling_mllmreid.options.arguments import OnnxArguments

    model, processor = load_onnx(PRETRAINED / "pedestrians-small/model.onnx", OnnxArguments(), {})
    with pytest.raises(UserError, match="model.onnx: an ONNX file has no gradients, .*: give the model that it was"):
        image_relevance(model, processor, small.photos[0][0])
