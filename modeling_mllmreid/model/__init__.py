"""Wing 1: the files that travel to the Hub inside every checkpoint. Importing it registers the auto classes."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_mllmreid import MllmReIDConfig
from .modeling_mllmreid import MllmReIDModel, MllmReIDOutput
from .processing_mllmreid import MllmReIDProcessor

__all__ = ["MllmReIDConfig", "MllmReIDModel", "MllmReIDOutput", "MllmReIDProcessor"]

AutoConfig.register(MllmReIDConfig.model_type, MllmReIDConfig)
AutoModel.register(MllmReIDConfig, MllmReIDModel)
AutoProcessor.register(MllmReIDConfig, MllmReIDProcessor)
