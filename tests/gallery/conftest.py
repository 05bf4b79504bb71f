"""Crops of plain colours, and an encoder that needs no model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.gallery.audit import Audit
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.model import EncoderSettings
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.utils.errors import UserError


class ColourEncoder:
    """The mean colour of 8 x 4 parts of an image, around a common mean."""

    numbers = 96

    def __init__(self, name="colours", **changed):
        self.name, self.changed, self.encoded = name, changed, 0

    def settings(self):
        own = {"model": self.name, "dtype": "float32", "feature": "vision", "numbers": self.numbers}
        return EncoderSettings(**{**own, "height": 8, "width": 4, "weights": "0" * 64, **self.changed})

    def encode(self, images):
        self.encoded += len(images)
        images = [image if isinstance(image, Image.Image) else Image.open(image) for image in images]
        pixels = np.stack([np.asarray(image.convert("RGB").resize((4, 8)), np.float32).ravel() for image in images])
        return pixels / 255 - 0.5

    def encode_text(self, texts):
        raise UserError(f"model {self.name}: cannot embed words")

    def pair_fusion(self):
        raise UserError(f"verify_top: model {self.name} compares no pairs")

    def describe(self, images):
        raise UserError(f"reasons: model {self.name} writes no text")

    def calibration(self):
        return None

    def threshold(self):
        return 0.05


def draw(path, seed):
    """Writes a crop of random colours; the same seed gives the same bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 64), Image.Resampling.NEAREST).save(path)
    return str(path)


@pytest.fixture
def crops(tmp_path):
    """Returns a function that draws N crops."""
    folder = Path(tmp_path, "crops")
    folder.mkdir()
    return lambda count, start=0: [draw(folder / f"{n:04d}.png", n) for n in range(start, start + count)]


@pytest.fixture
def encoder():
    return ColourEncoder()


@pytest.fixture(scope="module")
def module_encoder():
    return ColourEncoder()


@pytest.fixture
def gallery(tmp_path, encoder):
    return Gallery.create(tmp_path / "gallery", encoder)


@pytest.fixture
def images(gallery, crops):
    """Twelve crops of three cameras in the gallery; the sixth is Ida."""
    images = crops(12)
    gallery.add(images, [CropInfo(camera_id=n % 3, person="Ida" if n == 5 else None) for n in range(12)])
    return images


@pytest.fixture
def app(gallery, images, tmp_path):
    """The application of the gallery, without protection."""
    from modeling_mllmreid.serving.server import build_app  # of an extra
    from modeling_mllmreid.serving.service import GalleryService

    return build_app(GalleryService(gallery, Audit(tmp_path / "audit")))


@pytest.fixture
def client(app):
    """A client of the application behind its protection, without a password."""
    from served import client_of

    from modeling_mllmreid.serving.protection import Access
    from modeling_mllmreid.serving.server import protected

    return client_of(protected(app, Access(), "127.0.0.1"))
