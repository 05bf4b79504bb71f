"""Image relevance: which places of a crop make its feature similar to that of another crop.

The method is integrated gradients. It needs the feature's gradient to the pixels and nothing else, so it is the same
for every encoder, every pooling and the language model, whatever the order of their tokens.
"""

import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from ..data.images import open_image
from ..model import ImageEncoder, MllmReIDModel
from ..model.images import to_rgb
from ..utils.errors import UserError
from .onnx_encoder import OnnxEncoder
from .torch_embedding import Encoder, EncoderProcessor, eval_mode

# Pictures of one colour without content, in addition to the blurred crop. One alone would miss clothes of its colour.
COLOURS = ("black", "gray", "white")
# Radius of the blur as a share of the crop's width.
BLUR = 0.15
# Points on the path from each picture without content to the crop.
STEPS = 8


def image_relevance(
    model: Encoder,
    processor: EncoderProcessor,
    image: Image.Image | str | os.PathLike[str],
    other: Image.Image | str | os.PathLike[str] | np.ndarray | Tensor | None = None,
    *,
    feature: str | None = None,
    batch_size: int = 8,
) -> np.ndarray:
    """Computes how much each place of a crop adds to the cosine similarity of two features.

    The similarity is that of the crop's feature and of another crop's. Without another crop it is that of the crop's
    feature with itself, which shows where the feature looked. A positive number is similarity that comes from this
    place. A negative one is a place that makes the two crops differ. The numbers add up to the similarity of the crop
    less that of pictures without content: black, grey, white and the blurred crop, of which the result is the mean. The
    sum is approximate, as each path from such a picture to the crop has eight points.

    Args:
        model (`Encoder`): the model, in its full or vision form. An ONNX file has no gradients.
        processor (`EncoderProcessor`): its processor.
        image (`PIL.Image.Image`, `str` or `os.PathLike`): the crop, of any size.
        other (`PIL.Image.Image`, `str`, `os.PathLike`, `np.ndarray` or `Tensor`, *optional*): another crop, or its
            feature of shape (D,) by this model. By default the crop itself.
        feature (`str`, *optional*): "llm", "vision" or "concat"; by default the feature that the model embeds with.
        batch_size (`int`, defaults to 8): crops of one forward and backward pass, 32 in all. Fewer take less memory.

    Returns:
        `np.ndarray`: (h, w) float32, from top to bottom and from left to right: a number for each image token of "llm"
        and "concat", and for each patch of "vision". `draw_relevance` draws it on the crop.

    Raises:
        UserError: an ONNX file, a feature that the model does not have, an image that cannot be opened, another
            feature of the wrong size, or a relevance that is not finite.

    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks" (integrated gradients).

    Example:
        >>> from PIL import Image
        >>> from modeling_mllmreid import MllmReIDVisionModel, MllmReIDVisionProcessor, image_relevance
        >>> model = MllmReIDVisionModel.from_pretrained("pedestrians-small")
        >>> processor = MllmReIDVisionProcessor.from_pretrained("pedestrians-small")
        >>> crops = [Image.effect_noise((64, 128), spread).convert("RGB") for spread in (20, 90)]
        >>> image_relevance(model, processor, *crops).shape
        (8, 4)
    """
    if isinstance(model, OnnxEncoder):
        raise UserError(
            f"model {model.file.path}: an ONNX file has no gradients, which relevance needs: give the model that it "
            "was exported from"
        )
    name = model.config.test_feature if feature is None else feature
    # Autograd keeps no tensor of inference mode.
    with eval_mode(model), torch.inference_mode(False):
        crop = _opened(image)
        pixels = torch.as_tensor(processor(images=[crop, *_without_content(crop)])["pixel_values"])
        with torch.no_grad():
            target = _target(model, processor, name, pixels[:1], other)
        total = torch.zeros_like(pixels[0])
        for points, differences in _paths(pixels, batch_size):
            points.requires_grad_()
            with torch.enable_grad():
                similarity = (model.image_features(points, (name,))[name] @ target).sum()
                (gradient,) = torch.autograd.grad(similarity, points)
            total += (gradient * differences).sum(dim=0)
    if not total.isfinite().all():
        raise UserError("the relevance is not finite: load the model in float32 or bfloat16")
    by_pixel = total.sum(dim=0) / (STEPS * (len(pixels) - 1))
    return _cells(by_pixel, _side(model, name)).cpu().numpy()


def _opened(image: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """Returns an image as RGB, upright. Raises UserError if it cannot be opened."""
    return to_rgb(ImageOps.exif_transpose(image)) if isinstance(image, Image.Image) else open_image(image)


def _without_content(crop: Image.Image) -> list[Image.Image]:
    """Returns the pictures that a crop is compared with: of one colour each, and the crop without its details."""
    blurred = crop.filter(ImageFilter.GaussianBlur(BLUR * crop.width))
    return [*(Image.new("RGB", crop.size, colour) for colour in COLOURS), blurred]


def _paths(pixels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields points (B, 3, H, W) between a crop, the first image, and each other image, and the whole differences."""
    crop, starts = pixels[:1], pixels[1:].repeat_interleave(STEPS, dim=0)
    shares = ((torch.arange(STEPS) + 0.5) / STEPS).repeat(len(pixels) - 1).to(pixels).view(-1, 1, 1, 1)
    for start, share in zip(starts.split(batch_size), shares.split(batch_size), strict=True):
        yield start + share * (crop - start), crop - start


def _target(
    model: ImageEncoder,
    processor: EncoderProcessor,
    name: str,
    pixels: Tensor,
    other: Image.Image | str | os.PathLike[str] | np.ndarray | Tensor | None,
) -> Tensor:
    """Returns the unit feature (D,) that a crop's feature is compared with: another one, or its own."""
    try:
        own = model.image_features(pixels, (name,))[name][0]
    except ValueError as error:
        raise UserError(f"feature {name!r}: {error}") from error
    if other is None:
        return own
    if not isinstance(other, np.ndarray | Tensor):
        values = torch.as_tensor(processor(images=[_opened(other)])["pixel_values"])
        return model.image_features(values, (name,))[name][0]
    given = torch.as_tensor(other).detach().to(own)
    if given.shape != own.shape or not given.isfinite().all() or not given.any():
        raise UserError(
            f"other: of shape {list(given.shape)}, and {name!r} of this model has {len(own)} finite numbers, not all "
            "of them 0: give a feature of this model, or an image file"
        )
    return F.normalize(given, dim=0)


def _side(model: ImageEncoder, name: str) -> int:
    """Returns the pixels of the side of an image token, or of a patch of the vision feature."""
    if not isinstance(model, MllmReIDModel):
        patch: int = model.config.tower.patch
        return patch
    return model.backbone.tower.patch if name == "vision" else model.backbone.unit


def _cells(values: Tensor, side: int) -> Tensor:
    """Sums values (H, W) in squares; the squares of a size that is no multiple of their side are a little larger."""
    for _ in range(2):
        length = len(values)
        count = max(length // side, 1)
        place = torch.arange(length, device=values.device) * count // length
        values = torch.zeros(count, values.shape[1], dtype=values.dtype).to(values).index_add(0, place, values).T
    return values
