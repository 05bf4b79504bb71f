"""The vision form: the trained visual encoder and its ReID head as a model of its own, without the LLM."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import copy
import os
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from .backbones import tower_of
from .crops import TEXT_OPTIONS, CropProcessor, checked_pixels, crop_pixels, in_format
from .fields import check_crop_size, check_multiples, check_types, check_unit, nested_config
from .heads import ReIDHead, mean_pool
from .pipeline_mllmreid import person_reid_entry, without_known_entry
from .publishing import PrivatePush
from .weights import HUB, load_whole, owner_only, read_config


class MllmReIDVisionConfig(PrivatePush, PreTrainedConfig):
    r"""Configuration of [`MllmReIDVisionModel`].

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the visual encoder, which ends with the block that is pooled. Defaults to CLIP's.
        height, width (`int`, *optional*, defaults to 252 and 126):
            Size of a person crop in pixels.
        class_token (`bool`, *optional*, defaults to `True`):
            Whether the encoder's first state is a class token, which is not pooled.
        bnneck (`bool`, *optional*, defaults to `True`):
            Whether there is a batch norm.
        feature_after_bn (`bool`, *optional*, defaults to `True`):
            Whether the feature is taken after the batch norm.
        trained_on, overlap (`list[str]`, *optional*), base_licence (`str`, *optional*):
            As in [`MllmReIDConfig`].

    Raises:
        ValueError: for a field of the wrong type or out of its range.
    """

    model_type = "mllmreid_vision"
    sub_configs = {"vision_config": AutoConfig}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    height: int = 252
    width: int = 126
    class_token: bool = True
    bnneck: bool = True
    feature_after_bn: bool = True
    test_feature: Literal["vision"] = "vision"
    trained_on: list[str] | None = None
    overlap: list[str] | None = None
    base_licence: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = nested_config("vision_config", self.vision_config, "clip_vision_model")
        super().__post_init__(**without_known_entry(kwargs))
        check_types(self)
        check_crop_size(self)
        tower = tower_of(self.vision_config)
        check_unit(tower, self.vision_config)
        check_multiples(self.height, self.width, tower.unit)

    @staticmethod
    def travelling_code() -> tuple[Any, ...]:
        """Imports the files that the files imported above import; see the method of [`MllmReIDConfig`]."""
        from .backbone import Backbone
        from .backbone_gemma3 import Gemma3Backbone
        from .backbone_internvl import InternVLBackbone
        from .backbone_llava import LlavaBackbone
        from .backbone_qwen_vl import QwenVLBackbone
        from .backbone_smolvlm import SmolVLMBackbone
        from .images import open_image
        from .publishing import without_local_paths
        from .tensors import in_format_of
        from .towers import Tower

        families = (Gemma3Backbone, InternVLBackbone, LlavaBackbone, QwenVLBackbone, SmolVLMBackbone)
        return open_image, without_local_paths, in_format_of, Tower, Backbone, *families


class MllmReIDVisionModel(PrivatePush, PreTrainedModel):
    """A visual encoder with its ReID head, which computes the "vision" feature of a [`MllmReIDModel`].

    `from_reid_model` copies it out of a trained model.

    Args:
        config ([`MllmReIDVisionConfig`]):
            Configuration of the model. The weights are random.

    Source: synchronisation of the visual encoder in MLLMReID, [arXiv 2401.13201](https://arxiv.org/abs/2401.13201).

    Example:

    ```python
    >>> import torch
    >>> from modeling_mllmreid import MllmReIDVisionModel

    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> vision = {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, **sizes}
    >>> config = MllmReIDVisionModel.config_class(vision_config=vision, height=56, width=28)
    >>> model = MllmReIDVisionModel(config).eval()
    >>> with torch.inference_mode():
    ...     embeddings = model.encode_images(torch.zeros(3, 3, 56, 28))
    >>> embeddings.shape
    torch.Size([3, 16])

    ```
    """

    config_class = MllmReIDVisionConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: MllmReIDVisionConfig):
        super().__init__(config)
        self.tower = AutoModel.from_config(config.vision_config)
        self.reid_head = ReIDHead(config.vision_config.hidden_size, 0, config.bnneck)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str] | None, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Loads a checkpoint as in transformers, and checks that every weight comes from it.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A checkpoint's folder or its name on the Hub.
            config ([`MllmReIDVisionConfig`], *optional*):
                Configuration in place of the checkpoint's own.
            **kwargs:
                As in transformers. Fields of the configuration replace the stored ones.

        Returns:
            [`MllmReIDVisionModel`]

        Raises:
            ValueError: for pickled or broken weights, and for a weight that is missing, unknown, of another size or
                not finite. Only a batch norm may be new, if the stored configuration has none.
        """
        if name_or_path is None:
            return super().from_pretrained(name_or_path, *args, config=config, **kwargs)
        hub = {key: kwargs[key] for key in HUB if kwargs.get(key) is not None}
        stored = read_config(cls.config_class, name_or_path, hub)
        fields = {name: kwargs.pop(name) for name in cls.config_class.__annotations__ if name in kwargs}
        config = stored if config is None else config
        if fields:
            config = cls.config_class.from_dict({**config.to_dict(), **fields})
        with_loading_info = kwargs.pop("output_loading_info", False)

        def load(name: str | os.PathLike[str], **options: Any) -> Any:
            return super(MllmReIDVisionModel, cls).from_pretrained(name, *args, config=config, **options)

        batch_norm = ["reid_head.bottleneck."]
        changed = {"new": batch_norm if not stored.bnneck else [], "left": batch_norm if not config.bnneck else []}
        model, info = load_whole(load, name_or_path, hub, kwargs, stored=stored, **changed)
        return (model, info) if with_loading_info else model

    @classmethod
    def from_reid_model(cls, model: PreTrainedModel) -> "MllmReIDVisionModel":
        """Copies the visual encoder and the "vision" head of a [`MllmReIDModel`], without its ID classifier.

        Blocks above the pooled layer are left out, since no feature reads them.

        Args:
            model ([`MllmReIDModel`]):
                The model to copy from.

        Raises:
            ValueError: if the encoder has a LoRA, which must be merged first.
        """
        whole, tower = model.config, model.tower
        if any(".lora_" in name for name, _ in tower.named_parameters()):
            raise ValueError("a LoRA sits on the visual encoder: call model.merge_and_unload() first")
        vision_config = copy.deepcopy(whole.vision_config)
        depth, layer = vision_config.num_hidden_layers, model.vision_layer
        vision_config.num_hidden_layers = layer if layer >= 0 else depth + 1 + layer
        has_head = "vision" in model.reid_head
        config = cls.config_class(
            vision_config=vision_config,
            height=whole.height,
            width=whole.width,
            class_token=whole.mllm_config.vision_feature_select_strategy == "default",
            bnneck=has_head and whole.bnneck,
            feature_after_bn=whole.feature_after_bn,
            trained_on=whole.trained_on,
            overlap=whole.overlap,
            base_licence=whole.base_licence,
        )
        vision_model: MllmReIDVisionModel = cls(config).to(tower.device)
        vision_model.tower.to(tower.dtype)
        weights = tower.state_dict()
        vision_model.tower.load_state_dict({name: weights[name] for name in vision_model.tower.state_dict()})
        if config.bnneck:
            vision_model.reid_head.bottleneck.load_state_dict(model.reid_head["vision"].bottleneck.state_dict())
        vision_model.train(model.training)
        return vision_model

    def image_features(self, pixel_values: Tensor, names: tuple[str, ...] = ("vision",)) -> dict[str, Tensor]:
        """Computes the "vision" feature, the only one of this form.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Person crops from the processor.
            names (`tuple[str, ...]`):
                Features as in [`MllmReIDModel`]; those other than "vision" are left out.

        Returns:
            `dict[str, torch.Tensor]`: "vision" of shape (B, D), float32, L2-normalised.

        Raises:
            ValueError: if "vision" is not among the names.
        """
        if "vision" not in names:
            raise ValueError(f"a vision form has the feature 'vision' alone, not {', '.join(names)}")
        pixel_values = checked_pixels(pixel_values, self.tower)
        if pixel_values.shape[0] == 0:
            return {"vision": torch.zeros(0, self.config.vision_config.hidden_size, device=pixel_values.device)}
        states = self.tower(pixel_values, interpolate_pos_encoding=True, output_hidden_states=[-1]).hidden_states[-1]
        pooled = mean_pool(states[:, 1:] if self.config.class_token else states)
        if self.config.bnneck and self.config.feature_after_bn:
            pooled, _ = self.reid_head(pooled)
        return {"vision": F.normalize(pooled, dim=-1)}

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Embeds person crops of shape (B, 3, H, W). Returns (B, D), float32, L2-normalised."""
        return self.image_features(pixel_values)["vision"]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns `encode_images(pixel_values)`."""
        return self.encode_images(pixel_values)

    @owner_only()
    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves the model as in transformers; config.json names the pipeline too."""
        self.config.custom_pipelines = person_reid_entry()
        super().save_pretrained(save_directory, *args, **kwargs)


class MllmReIDVisionProcessor(CropProcessor, ProcessorMixin):
    """Converts whole person crops to pixels like [`MllmReIDProcessor`], without a tokenizer."""

    def __init__(self, image_processor: Any = None, **kwargs: Any):
        super().__init__(image_processor)
        self.check_size()

    def __call__(
        self, images: Any = None, *, return_tensors: str | None = None, device: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Returns `pixel_values` of shape (B, 3, H, W). The arguments are those of [`MllmReIDProcessor`]."""
        if images is None:
            raise ValueError("give images")
        options = {key: value for key, value in kwargs.items() if key not in TEXT_OPTIONS}
        return in_format({"pixel_values": crop_pixels(self.image_processor, images, **options)}, return_tensors, device)


MllmReIDVisionConfig.register_for_auto_class()
MllmReIDVisionModel.register_for_auto_class("AutoModel")
MllmReIDVisionProcessor.register_for_auto_class()
