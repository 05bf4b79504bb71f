"""The families of multimodal LLMs, and the backbone of a configuration."""

from transformers import PreTrainedConfig

from .backbone import Backbone
from .backbone_gemma3 import Gemma3Backbone
from .backbone_internvl import InternVLBackbone
from .backbone_llava import LlavaBackbone, LlavaOnevisionBackbone
from .backbone_qwen_vl import QwenVLBackbone
from .backbone_smolvlm import SmolVLMBackbone
from .backbone_video_llama3 import VideoLlama3Backbone
from .encoders import encoder_tower
from .towers import Tower

_CLASSES = (
    LlavaBackbone,
    LlavaOnevisionBackbone,
    SmolVLMBackbone,
    InternVLBackbone,
    Gemma3Backbone,
    QwenVLBackbone,
    VideoLlama3Backbone,
)
FAMILIES: dict[str, type[Backbone]] = {name: family for family in _CLASSES for name in family.model_types}
TOWERS: dict[str, type[Tower]] = {name: tower for family in _CLASSES for name, tower in family.towers.items()}
# The family of the paper, for a configuration without a model type.
DEFAULT_FAMILY = LlavaBackbone.model_types[0]


def tower_of(vision_config: PreTrainedConfig) -> Tower:
    """Returns the description of a vision tower by its configuration."""
    # Of the class: transformers builds the family's own tower, whatever type its configuration names.
    own = TOWERS.get(type(vision_config).model_type)
    return encoder_tower(vision_config) if own is None else own(vision_config)


def backbone_of(config: PreTrainedConfig) -> Backbone:
    """Returns the description of a multimodal LLM by its configuration.

    Raises:
        ValueError: for a family that is not known.
    """
    check_family(config.model_type)
    return FAMILIES[config.model_type](config, tower_of(config.vision_config))


def check_family(model_type: str) -> None:
    """Raises ValueError that names the known families if a model type is not one of them."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"{model_type!r} is no known family of multimodal LLMs: give a model of {', '.join(FAMILIES)}; "
            "docs/backbones.md shows how to add a family in one file of about 60 lines"
        )
