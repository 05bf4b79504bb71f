"""The vision form: visual encoder and head alone, the ReID backbone that the training was for, without the LLM."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from .crops import TEXT_OPTIONS, CropProcessor, checked_pixels, crop_pixels, in_format
from .fields import check_crop_size, check_types, nested_config
from .heads import ReIDHead, mean_pool
from .pipeline_mllmreid import person_reid_entry, without_known_entry
from .publishing import PrivatePush
from .weights import HUB, load_whole, owner_only, read_config


class MllmReIDVisionConfig(PrivatePush, PreTrainedConfig):
    r"""Configuration of [`MllmReIDVisionModel`].

    vision_config (`dict` or `PreTrainedConfig`):
        Configuration of the visual encoder, cut after the block whose patches are pooled.
    height, width (`int`):
        Size in pixels of a person crop.
    class_token (`bool`):
        Whether the encoder's first state is a class token, which is not pooled.
    bnneck, feature_after_bn (`bool`):
        Whether there is a batch norm, and whether the feature is taken after it.
    trained_on, overlap (`list[str]`), base_licence (`str`), *optional*:
        As in [`MllmReIDConfig`].
    """

    model_type = "mllmreid_vision"
    sub_configs = {"vision_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    height: int = 252
    width: int = 126
    class_token: bool = True
    bnneck: bool = True
    feature_after_bn: bool = True
    test_feature: Literal["vision"] = "vision"
    trained_on: list[str] | None = None
    overlap: list[str] | None = None
    base_licence: str | None = None

    def __post_init__(self, **kwargs):
        self.vision_config = nested_config("vision_config", self.vision_config, "clip_vision_model")
        super().__post_init__(**without_known_entry(kwargs))
        check_types(self)
        check_crop_size(self, self.vision_config)

    @staticmethod
    def travelling_code() -> tuple:
        """Of the files that those imported above import: as in [`MllmReIDConfig`], this file names every one."""
        from .images import open_image
        from .publishing import without_local_paths
        from .tensors import in_format_of

        return open_image, without_local_paths, in_format_of


class MllmReIDVisionModel(PrivatePush, PreTrainedModel):
    """A visual encoder with its ReID head: the "vision" feature of the [`MllmReIDModel`] that it was taken from."""

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
    def from_pretrained(cls, name_or_path, *args, config=None, **kwargs):
        """As in transformers, with every weight out of the checkpoint.

        Raises ValueError for pickled or broken weights, and for one that is missing, unknown, of another size or not
        finite; only a batch norm that the checkpoint's own configuration says it lacks may be new.
        """
        if name_or_path is None:
            return super().from_pretrained(name_or_path, *args, config=config, **kwargs)
        hub = {key: kwargs[key] for key in HUB if kwargs.get(key) is not None}
        stored = read_config(cls.config_class, name_or_path, hub)
        fields = {name: kwargs.pop(name) for name in cls.config_class.__annotations__ if name in kwargs}
        config = stored if config is None else config
        if fields:
            config = cls.config_class.from_dict({**config.to_dict(), **fields})
        wanted_info = kwargs.pop("output_loading_info", False)

        def load(name, **options):
            return super(MllmReIDVisionModel, cls).from_pretrained(name, *args, config=config, **options)

        neck = ["reid_head.bottleneck."]
        changed = {"new": neck if not stored.bnneck else [], "left": neck if not config.bnneck else []}
        model, info = load_whole(load, name_or_path, hub, kwargs, stored=stored, **changed)
        return (model, info) if wanted_info else model

    @classmethod
    def from_reid_model(cls, model: PreTrainedModel) -> "MllmReIDVisionModel":
        """The visual encoder and the "vision" head of a [`MllmReIDModel`], copied, without its ID classifier.

        Blocks above the pooled layer are left out: no feature reads them. Raises ValueError where a LoRA sits on the
        encoder: merge it first.
        """
        whole, tower = model.config, model._llava.vision_tower
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
        form = cls(config).to(tower.device)
        form.tower.to(tower.dtype)
        weights = tower.state_dict()
        form.tower.load_state_dict({name: weights[name] for name in form.tower.state_dict()})
        if config.bnneck:
            form.reid_head.bottleneck.load_state_dict(model.reid_head["vision"].bottleneck.state_dict())
        return form.train(model.training)

    def image_features(self, pixel_values: Tensor, names: tuple[str, ...] = ("vision",)) -> dict[str, Tensor]:
        """{"vision": (B, D)}, float32, L2-normalised. pixel_values: (B, 3, H, W). Other features have no model here.

        Raises ValueError where "vision" is not among the names.
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
        """The embedding of person crops. pixel_values: (B, 3, H, W). Returns (B, D), float32, L2-normalised."""
        return self.image_features(pixel_values)["vision"]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`encode_images`."""
        return self.encode_images(pixel_values)

    @owner_only()
    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; config.json names the pipeline, too."""
        self.config.custom_pipelines = person_reid_entry()
        super().save_pretrained(save_directory, *args, **kwargs)


class MllmReIDVisionProcessor(CropProcessor, ProcessorMixin):
    """Whole person crops to pixels, as in [`MllmReIDProcessor`], without a tokenizer."""

    def __init__(self, image_processor=None, **kwargs):
        super().__init__(image_processor)
        self.check_size()

    def __call__(self, images=None, *, return_tensors=None, device=None, **kwargs) -> BatchFeature:
        """`pixel_values`, (B, 3, H, W). images, return_tensors, device: as in [`MllmReIDProcessor`]."""
        if images is None:
            raise ValueError("give images")
        options = {key: value for key, value in kwargs.items() if key not in TEXT_OPTIONS}
        return in_format({"pixel_values": crop_pixels(self.image_processor, images, **options)}, return_tensors, device)


MllmReIDVisionConfig.register_for_auto_class()
MllmReIDVisionModel.register_for_auto_class("AutoModel")
MllmReIDVisionProcessor.register_for_auto_class()
