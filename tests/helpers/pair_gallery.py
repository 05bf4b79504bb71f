"""A gallery of a tiny model that was trained with `pair_weight`."""

import shutil
from pathlib import Path
from types import SimpleNamespace

from tiny_training import train_tiny, world_of

from modeling_mllmreid.evaluation.calibration import Calibration
from modeling_mllmreid.evaluation.pair_fusion import PairFusion
from modeling_mllmreid.evaluation.threshold import Threshold, save_thresholds
from modeling_mllmreid.gallery.encoder import ModelEncoder
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.synthetic.write import write_pedestrians

# The order of a model of eight steps is that of the scores, and not that of the distances.
FUSION = PairFusion(0.5, -1.0, 300.0, 0.5, 0.4, 0.6, 12, 100, 20, 40, 0.2, 0.02)
CALIBRATION = Calibration((0.0, 1.0), (5.0, -5.0), (0.0,) * 5, 0.0, 1.0, 1.0, 12, 40)


def make_pair_gallery(root: Path) -> SimpleNamespace:
    """A model with a fusion, images and queries of a world, and a gallery of the images."""
    write_pedestrians(root / "people", train_identities=8, test_identities=6, images_per_camera=2, cameras=2)
    words = (*PAIR_ANSWERS, PAIR_QUESTION)
    train_tiny(root, world_of(root / "people"), max_steps=8, model={"pair_weight": 1.0}, words=words)
    threshold = Threshold(0.02, 0, 2, 0.1, 0.5, 20, 12, 40, calibration=CALIBRATION, fusion=FUSION)
    save_thresholds(root / "run", {"llm": threshold})
    images = [str(image) for image in sorted((root / "people/bounding_box_test").glob("0*.jpg"))]
    queries = [str(image) for image in sorted((root / "people/query").glob("*.jpg"))]
    encoder = ModelEncoder(ModelArguments(str(root / "run")))
    gallery = Gallery.create(root / "gallery", encoder)
    gallery.add(images, [CropInfo(camera_id=number % 2) for number in range(len(images))])
    return SimpleNamespace(root=root, model=root / "run", encoder=encoder, gallery=gallery, queries=queries)


def copy_gallery(trained: SimpleNamespace, folder: Path) -> Gallery:
    """A gallery of its own, with image files that a test may change."""
    images = [shutil.copy(hit.file_name, folder) for hit in trained.gallery.find(Where())]
    gallery = Gallery.create(folder / "gallery", trained.encoder)
    gallery.add(images)
    return gallery
