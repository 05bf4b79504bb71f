"""The vision form: a vision encoder with its ReID head as a model of its own, without a language model."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import os
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers import initialization as init

from .adapters import inject_adapter
from .configuration_vision_mllmreid import MllmReIDVisionConfig
from .crops import (
    TEXT_OPTIONS,
    CropProcessor,
    checked_pixels,
    crop_image_processor,
    crop_pixels,
    in_format,
    processor_files,
)
from .encoder_checkpoints import EncoderCheckpoints, encoder_config
from .encoders import build_encoder
from .heads import IDClassifier, MllmReIDOutput, ReIDFeatures, ReIDHead
from .losses import reid_loss
from .pooling import Pooling
from .tensors import on_device_of
from .towers import TowerOutput
from .weights import Hub, Source, read_fields


class MllmReIDVisionModel(EncoderCheckpoints, PreTrainedModel):
    """A vision encoder with a ReID head: a ReID model of its own, or the encoder of a trained [`MllmReIDModel`].

    `from_encoder_pretrained` starts from a vision encoder, `from_reid_model` copies the encoder out of a trained model,
    `from_pretrained` loads a checkpoint of this model.

    Args:
        config ([`MllmReIDVisionConfig`]):
            Configuration of the model. The weights are random.

    Source: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification"; synchronisation of
    the visual encoder in MLLMReID, [arXiv 2401.13201](https://arxiv.org/abs/2401.13201).

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
        self.tower = build_encoder(config.vision_config)
        if config.lora_modules is not None:
            settings = {"r": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
            inject_adapter(self.tower, {**settings, "target_modules": config.lora_modules})
        self.pooling = Pooling(config.pooling)
        self.reid_head = ReIDHead(self.feature_size, config.num_identities, config.bnneck)
        self.post_init()

    @property
    def heads(self) -> dict[str, ReIDHead]:
        """The ReID head by the name of its feature, "vision"."""
        return {"vision": self.reid_head}

    @property
    def feature_size(self) -> int:
        """Size D of the feature."""
        return self.pooling.feature_size(self.config.tower.size)

    @property
    def vision_layer(self) -> int | None:
        """Layer that is pooled: index of a hidden state, or None for the final output."""
        layer: int | None = self.config.vision_layer
        return layer

    @property
    def read_layers(self) -> list[int | None]:
        """Layers of the encoder that are read: indices of hidden states, or None for the final output."""
        return [self.vision_layer]

    def train(self, mode: bool = True) -> "MllmReIDVisionModel":
        """Sets the mode as in PyTorch; a frozen encoder stays in evaluation mode, and keeps its batch statistics."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.tower.parameters()):
            self.tower.eval()
        return self

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, IDClassifier):
            init.normal_(module.weight, mean=0.0, std=module.std)
        elif isinstance(module, Pooling):
            module.reset_parameters()

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
        description, layer = model.backbone.tower, model.vision_layer
        index = description.depth if layer is None else range(description.depth + 1)[layer]
        # At least one: an encoder without blocks reports no hidden states.
        blocks = max(index, 1)
        has_head = "vision" in model.reid_head
        config = cls.config_class(
            vision_config=description.cut(blocks),
            height=whole.height,
            width=whole.width,
            vision_layer=None if layer is None else index - blocks - 1,
            dropped_states=model.backbone.dropped_states,
            bnneck=has_head and whole.bnneck,
            feature_after_bn=whole.feature_after_bn,
            trained_on=whole.trained_on,
            overlap=whole.overlap,
            base_licence=whole.base_licence,
            exported=True,
        )
        vision_model: MllmReIDVisionModel = cls(config).to(tower.device)
        vision_model.tower.to(tower.dtype)
        weights = tower.state_dict()
        vision_model.tower.load_state_dict({name: weights[name] for name in vision_model.tower.state_dict()})
        if config.bnneck:
            vision_model.reid_head.bottleneck.load_state_dict(model.reid_head["vision"].bottleneck.state_dict())
        vision_model.train(model.training)
        return vision_model

    # ---- features ------------------------------------------------------------------------------------------------

    def run_tower(self, pixel_values: Tensor) -> TowerOutput:
        """Runs the encoder on crops (B, 3, H, W); it returns the states that the feature reads."""
        layers = [layer for layer in self.read_layers if layer is not None]
        output: TowerOutput = self.config.tower.run(self.tower, checked_pixels(pixel_values, self.tower), layers)
        return output

    def pool_vision(self, output: TowerOutput) -> Tensor:
        """Returns the un-normalised feature, (B, D)."""
        states = output.state(self.vision_layer)
        dropped = self.config.dropped_states
        if dropped is None:
            dropped = states.shape[1] - output.grid[0] * output.grid[1]
        pooled: Tensor = self.pooling(states, dropped)
        return pooled

    def image_features(self, pixel_values: Tensor, names: tuple[str, ...] = ("vision",)) -> dict[str, Tensor]:
        """Computes the "vision" feature, the only one of this model.

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
            return {"vision": torch.zeros(0, self.feature_size, device=pixel_values.device)}
        return {"vision": self._test_feature(self.pool_vision(self.run_tower(pixel_values)))}

    def _test_feature(self, pooled: Tensor) -> Tensor:
        if self.config.bnneck and self.config.feature_after_bn:
            pooled, _ = self.reid_head(pooled)
        return F.normalize(pooled, dim=-1)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Embeds person crops of shape (B, 3, H, W). Returns (B, D), float32, L2-normalised."""
        return self.image_features(pixel_values)["vision"]

    # ---- training ------------------------------------------------------------------------------------------------

    def forward(self, pixel_values: Tensor, person_ids: Tensor | None = None) -> MllmReIDOutput:
        """Computes the feature and the ReID losses of a batch, or embeddings if only pixels are given.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Person crops from the processor.
            person_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
                Labels 0 to n-1 of the ID classifier. They give the loss.

        Returns:
            [`MllmReIDOutput`]
        """
        feature = on_device_of(self.reid_head, self.pool_vision(self.run_tower(pixel_values)))
        if person_ids is None:
            return MllmReIDOutput(image_embeds=self._test_feature(feature), features=ReIDFeatures(vision=feature))
        output = MllmReIDOutput(features={"vision": feature}, loss_parts={})
        person_ids = on_device_of(self.reid_head, person_ids)
        output.reid_loss, output.id_logits = reid_loss(
            self.config, self.heads, output.features, None, person_ids, output.loss_parts
        )
        output.loss = output.reid_loss
        return output


class NoTokenizer(NamedTuple):
    """What the Trainer of transformers reads of a processor's tokenizer, where there is none."""

    bos_token_id: None = None
    eos_token_id: None = None
    pad_token_id: None = None


class MllmReIDVisionProcessor(CropProcessor, ProcessorMixin):
    """Converts whole person crops to pixels like [`MllmReIDProcessor`], without a tokenizer.

    Args:
        image_processor (`BaseImageProcessor`):
            Image processor that resizes to a height and a width.

    Raises:
        ValueError: for an image processor without a sensible size.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import CLIPImageProcessor
    >>> from modeling_mllmreid import MllmReIDVisionProcessor

    >>> image_processor = CLIPImageProcessor(size={"height": 128, "width": 64}, do_center_crop=False)
    >>> processor = MllmReIDVisionProcessor(image_processor)
    >>> processor(images=[Image.new("RGB", (40, 90))] * 2)["pixel_values"].shape
    torch.Size([2, 3, 128, 64])

    ```
    """

    tokenizer = NoTokenizer()

    def __init__(self, image_processor: Any = None, **kwargs: Any):
        super().__init__(image_processor)
        self.check_size()

    @classmethod
    def from_encoder_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        height: int | None = None,
        width: int | None = None,
        revision: str | None = None,
    ) -> "MllmReIDVisionProcessor":
        """Creates a processor from the files of a vision encoder: its mean, standard deviation and resampling.

        Args:
            name_or_path (`str` or `os.PathLike`):
                The encoder's folder or its name on the Hub.
            height, width (`int`, *optional*):
                Size in pixels that whole crops are resized to. Defaults to the encoder's size.
            revision (`str`, *optional*):
                Commit, tag or branch on the Hub.

        Raises:
            OSError: if files are missing.
            ValueError: for a model that is no vision encoder and for settings that make no pixels.
        """
        hub: Hub = {} if revision is None else {"revision": revision}
        config = encoder_config(MllmReIDVisionConfig, name_or_path, hub, height=height, width=width)
        settings = pixel_settings(name_or_path, hub)
        with processor_files(name_or_path):
            size = {"height": config.height, "width": config.width}
            processor = cls(crop_image_processor(size, **settings))
            processor.check_pixels()
        return processor

    def __call__(
        self, images: Any = None, *, return_tensors: str | None = None, device: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Returns `pixel_values` of shape (B, 3, H, W). The arguments are those of [`MllmReIDProcessor`]."""
        if images is None:
            raise ValueError("give images")
        options = {key: value for key, value in kwargs.items() if key not in TEXT_OPTIONS}
        return in_format({"pixel_values": crop_pixels(self.image_processor, images, **options)}, return_tensors, device)

    @staticmethod
    def travelling_code() -> None:
        """Imports the files that the files imported above import; see the method of [`MllmReIDConfig`]."""
        from .backbone import Image  # noqa: F401
        from .backbone_gemma3 import Gemma3Backbone  # noqa: F401
        from .backbone_internvl import InternVLBackbone  # noqa: F401
        from .backbone_llava import LlavaBackbone  # noqa: F401
        from .backbone_qwen_vl import QwenVLBackbone  # noqa: F401
        from .backbone_smolvlm import SmolVLMTower  # noqa: F401
        from .backbone_video_llama3 import VideoLlama3Tower  # noqa: F401
        from .backbones import tower_of  # noqa: F401
        from .fields import check_types  # noqa: F401
        from .identities import IdentityClassifiers  # noqa: F401
        from .images import open_image  # noqa: F401
        from .pipeline_mllmreid import PersonReIDPipeline  # noqa: F401
        from .publishing import without_local_paths  # noqa: F401
        from .reid_osnet import ReIDOSNetConfig  # noqa: F401
        from .reid_resnet import ReIDResNetConfig  # noqa: F401
        from .reid_swin import ReIDSwinConfig  # noqa: F401
        from .reid_vit import ReIDViTConfig  # noqa: F401
        from .sentence_transformers_mllmreid import PersonEmbedder  # noqa: F401
        from .shipped_models import shipped_folder  # noqa: F401
        from .tower_packed import PackedTower  # noqa: F401
        from .tower_qwen_vl import QwenTower  # noqa: F401


# Settings of an image processor that decide which numbers pixels become.
PIXEL_SETTINGS = ("image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize")
# Numbers of PIL's filters by timm's names.
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def pixel_settings(name_or_path: Source, hub: Hub) -> dict[str, Any]:
    """Reads the settings of an encoder's pixels from its files, whatever the class of its image processor.

    Some classes need torchvision, and several crop to a square.

    Raises:
        OSError: if there are none.
    """
    fields = read_fields(name_or_path, "preprocessor_config.json", hub)
    if fields is None:
        fields = (read_fields(name_or_path, "processor_config.json", hub) or {}).get("image_processor")
    if isinstance(fields, dict):
        return {name: fields[name] for name in PIXEL_SETTINGS if fields.get(name) is not None}
    trained = (read_fields(name_or_path, "config.json", hub) or {}).get("pretrained_cfg")
    if not isinstance(trained, dict) or not {"mean", "std"} <= trained.keys():
        raise OSError(
            f"{name_or_path}: has no preprocessor_config.json, which holds mean and standard deviation of the pixels: "
            "add the file of the encoder"
        )
    resample = FILTERS.get(str(trained.get("interpolation")), FILTERS["bicubic"])
    return {"image_mean": trained["mean"], "image_std": trained["std"], "resample": resample}


MllmReIDVisionModel.register_for_auto_class("AutoModel")
MllmReIDVisionProcessor.register_for_auto_class()
