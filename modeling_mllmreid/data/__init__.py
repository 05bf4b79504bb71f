"""Person data: readers, validation split, continuation texts, P x K sampling and augmentation."""

from .augmentation import PersonAugmentation, rng_for
from .columns import FEATURES, image_sources
from .images import check_images, open_image
from .load import load_reid_dataset
from .sampler import PKSampler
from .splits import label_mapping, query_gallery_parts, split_validation

__all__ = [
    "FEATURES",
    "PKSampler",
    "PersonAugmentation",
    "check_images",
    "image_sources",
    "label_mapping",
    "load_reid_dataset",
    "open_image",
    "query_gallery_parts",
    "rng_for",
    "split_validation",
]
