"""The classes of the model. Importing this file registers them with the auto classes of transformers."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_mllmreid import MllmReIDConfig
from .configuration_vision_mllmreid import MllmReIDVisionConfig
from .heads import MllmReIDOutput
from .modeling_mllmreid import MllmReIDModel
from .pipeline_mllmreid import PersonReIDPipeline, register_person_reid
from .processing_mllmreid import MllmReIDProcessor
from .vision_mllmreid import MllmReIDVisionModel, MllmReIDVisionProcessor

__all__ = [
    "ImageEncoder",
    "ImageEncoderProcessor",
    "MllmReIDConfig",
    "MllmReIDModel",
    "MllmReIDOutput",
    "MllmReIDProcessor",
    "MllmReIDVisionConfig",
    "MllmReIDVisionModel",
    "MllmReIDVisionProcessor",
    "PersonReIDPipeline",
]

# Either form of the model, whole or vision, and its processor.
ImageEncoder = MllmReIDModel | MllmReIDVisionModel
ImageEncoderProcessor = MllmReIDProcessor | MllmReIDVisionProcessor

AutoConfig.register(MllmReIDConfig.model_type, MllmReIDConfig)
AutoModel.register(MllmReIDConfig, MllmReIDModel)
AutoProcessor.register(MllmReIDConfig, MllmReIDProcessor)
AutoConfig.register(MllmReIDVisionConfig.model_type, MllmReIDVisionConfig)
AutoModel.register(MllmReIDVisionConfig, MllmReIDVisionModel)
AutoProcessor.register(MllmReIDVisionConfig, MllmReIDVisionProcessor)
register_person_reid()
