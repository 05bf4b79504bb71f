"""TEMPORARY until main is merged."""

from transformers import PreTrainedConfig

from .encoders import encoder_tower
from .towers import Tower


def tower_of(vision_config: PreTrainedConfig) -> Tower:
    """Returns the description of a vision tower by its configuration."""
    return encoder_tower(vision_config)
