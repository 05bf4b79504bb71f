"""The pixels of training samples: those of the plain way from the file, and those of any image processor."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.model import MllmReIDVisionProcessor
from modeling_mllmreid.model.crops import crop_image_processor
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainDataset
from modeling_mllmreid.training.pixels import CropPixels

SIZES = [(128, 64), (252, 126), (4, 2)]


def processor_of(height, width, **settings):
    return MllmReIDVisionProcessor(crop_image_processor({"height": height, "width": width}, **settings))


def noise(height, width):
    return Image.fromarray(np.random.default_rng(1).integers(256, size=(height, width, 3), dtype=np.uint8))


def plain_sample(path, seed, epoch, position, index, height, width, image_processor, settings):
    """The sample by Pillow and NumPy in double precision, with every random choice in its order."""
    rng = np.random.default_rng([seed, epoch, position, index])
    image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pad = min(10, height // 8, width // 8)
    left, top = rng.integers(-pad, pad + 1, size=2)
    if jitter := settings.get("color_jitter"):
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(1 + rng.uniform(-jitter, jitter))
    if (downscale := settings.get("downscale")) and rng.random() < downscale:
        scale = rng.uniform(0.5, 1)
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = image.resize(small, Image.Resampling.BILINEAR).resize((width, height), Image.Resampling.BICUBIC)
    padded = np.pad(np.asarray(image, dtype=np.float64), ((pad, pad), (pad, pad), (0, 0)))
    crop = padded[pad + top : pad + top + height, pad + left : pad + left + width]
    pixels = ((crop / 255 - image_processor.image_mean) / image_processor.image_std).transpose(2, 0, 1)
    if rng.random() < 0.5:
        while True:
            area, ratio = rng.uniform(0.02, 0.33) * height * width, np.exp(rng.uniform(*np.log((0.3, 3.3))))
            tall, wide = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < tall < height and 0 < wide < width:
                top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
                pixels[:, top : top + tall, left : left + wide] = 0
                break
    return pixels


@pytest.mark.parametrize("settings", [{}, {"color_jitter": 0.3, "downscale": 0.5}], ids=["default", "all"])
@pytest.mark.parametrize(("height", "width"), [(128, 64), (252, 126), (64, 32)])
def test_samples_are_those_of_the_plain_way(world, height, width, settings):
    processor = processor_of(height, width)
    split = world["train"].select(range(6))
    samples = TrainDataset(split, processor, BatchArguments(**settings), seed=3, language=False)
    paths, worst = image_sources(split), 0.0
    for index, epoch, position in np.ndindex(6, 2, 4):
        expected = plain_sample(
            paths[index], 3, epoch, position, index, height, width, processor.image_processor, settings
        )
        got = samples[index, epoch, position]["pixel_values"]
        assert got.dtype == torch.float32 and got.is_contiguous()
        worst = max(worst, np.abs(got.numpy() - expected).max() * max(processor.image_processor.image_std))
    # A level is 1 of 255: the difference is that of single to double precision.
    assert worst < 1e-6 < 1 / 255


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "resample": 2},
    ],
    ids=str,
)
def test_pixels_are_those_of_the_processor_to_the_last_bit(height, width, settings):
    processor = processor_of(height, width, **settings)
    pixels, crop = CropPixels(processor), noise(height, width)
    expected = processor(images=[crop])["pixel_values"][0].numpy()
    got = pixels(crop)
    assert pixels.table is not None and got.dtype == expected.dtype and np.array_equal(got, expected)
    # The caller may change them.
    got[:] = 7
    assert np.array_equal(pixels(crop), expected)


def test_a_processor_that_looks_at_the_whole_crop_makes_the_pixels_itself():
    class Standardising:
        height, width = 128, 64

        def __call__(self, images):
            pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() for image in images])
            return {"pixel_values": pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)}

    pixels, crop = CropPixels(Standardising()), noise(128, 64)
    assert pixels.table is None
    assert np.array_equal(pixels(crop), Standardising()([crop])["pixel_values"][0].numpy())
