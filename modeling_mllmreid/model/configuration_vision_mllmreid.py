"""MllmReIDVisionConfig: the configuration of a vision encoder, nested, and the fields of person re-identification."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import math
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from .backbones import tower_of
from .fields import check_crop_size, check_layer, check_multiples, check_range, check_types, check_unit, nested_config
from .pipeline_mllmreid import without_known_entry
from .pooling import WITH_CLASS_TOKEN, PoolingName, no_class_token
from .publishing import PrivatePush
from .towers import Tower

# Fields of [`MllmReIDConfig`] that need a language model, and the only value that each has without one.
WITHOUT_LLM: dict[str, Any] = {
    "reid_on": "vision",
    "loss_lambda": 1.0,
    "llm_layer": None,
    "distillation_weight": 0.0,
    "reid_text": False,
    "text_loss": None,
    "text_temperature": None,
    "pair_weight": 0.0,
    "image_prefix_ids": None,
}


class MllmReIDVisionConfig(PrivatePush, PreTrainedConfig):
    r"""Configuration of [`MllmReIDVisionModel`].

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the visual encoder. Defaults to CLIP's.
        height, width (`int`, *optional*):
            Size of a person crop in pixels; multiples of the side of a patch. Defaults to the encoder's size: 252 and
            126 for patches of 14 pixels, 256 and 128 for 16 and 32, 448 and 224 for Swin.
        pooling (`"class"`, `"mean"`, `"gem"` or `"class_mean"`, *optional*, defaults to `"mean"`):
            The feature: the class token, the mean of the patches, GeM over the patches, or the class token followed by
            the mean, which is twice as long.
        vision_layer (`int`, *optional*):
            Index into the encoder's hidden states of the layer to pool. Defaults to the final output, after the last
            norm.
        dropped_states (`int`, *optional*):
            Number of first states that mean and GeM leave out. Defaults to all that are not patches.
        id_weight, triplet_weight, label_smoothing, triplet_margin, triplet_soft_margin, bnneck, feature_after_bn:
            As in [`MllmReIDConfig`].
        num_identities, identities_digest, trained_on, overlap, base_licence:
            As in [`MllmReIDConfig`].
        exported (`bool`, *optional*, defaults to `False`):
            Whether the encoder was copied out of a [`MllmReIDModel`], which was trained with a language model.
        converted_from (`str`, *optional*):
            Layout and address of the project whose published checkpoint was converted. It is a record.
        lora_modules (`list[str]`, *optional*):
            Names of the encoder's layers with a LoRA. The checkpoint holds its weights.
        lora_rank, lora_alpha, lora_dropout (`int`, `float`, `float`, *optional*):
            Settings of the LoRA.
        lora_targets (`str`, *optional*):
            Regular expression that chose the layers, if the user gave one. It is a record; nothing matches it.

    Raises:
        ValueError: for a field of the wrong type or out of its range, and for one that needs a language model.
    """

    model_type = "mllmreid_vision"
    sub_configs = {"vision_config": AutoConfig}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    height: int | None = None
    width: int | None = None
    pooling: PoolingName = "mean"
    vision_layer: int | None = None
    dropped_states: int | None = None
    id_weight: float = 1.0
    triplet_weight: float = 1.0
    label_smoothing: float = 0.1
    triplet_margin: float = 0.3
    triplet_soft_margin: bool = False
    triplet_scale: Literal["none", "batch", "unit"] = "none"
    bnneck: bool = True
    feature_after_bn: bool = True
    test_feature: Literal["vision"] = "vision"
    num_identities: int = 0
    identities_digest: str | None = None
    trained_on: list[str] | None = None
    overlap: list[str] | None = None
    base_licence: str | None = None
    exported: bool = False
    converted_from: str | None = None
    lora_modules: list[str] | None = None
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = nested_config("vision_config", self.vision_config, "clip_vision_model")
        if "class_token" in kwargs:
            # Version 0.1.0: the form ends with the block that is pooled, and may leave out the class token.
            self.dropped_states = int(kwargs.pop("class_token"))
            self.vision_layer, self.exported = -1, True
        for name in WITHOUT_LLM.keys() & kwargs.keys():
            _refuse(name, kwargs.pop(name))
        check_unit(self.tower, self.vision_config)
        size = self.tower.default_size
        self.height = size[0] if self.height is None else self.height
        self.width = size[1] if self.width is None else self.width
        super().__post_init__(**without_known_entry(kwargs))
        check_types(self)
        check_range(self, 0, 1, "label_smoothing", "lora_dropout")
        check_range(self, 0, math.inf, "id_weight", "triplet_weight", "triplet_margin", "num_identities")
        check_range(self, 1, math.inf, "lora_rank")
        check_crop_size(self)
        check_multiples(self.height, self.width, self.tower.unit)
        if self.vision_layer is not None and not self.tower.has_states:
            kind = self.vision_config.model_type
            raise ValueError(
                f"vision_layer is {self.vision_layer}: {kind!r} has no hidden states of one size: leave it out"
            )
        if self.vision_layer is not None:
            check_layer("vision_layer", self.vision_layer, self.tower.depth)
        if self.dropped_states is not None:
            check_range(self, 0, math.inf, "dropped_states")
        if self.pooling in WITH_CLASS_TOKEN and not self.tower.prefix_tokens:
            raise no_class_token(self)

    @property
    def tower(self) -> Tower:
        """Description of the encoder."""
        return tower_of(self.vision_config)

    @property
    def num_image_tokens(self) -> int:
        """Number of patches of one crop."""
        rows, columns = self.tower.grid(self.height, self.width)
        return rows * columns

    # ---- fields of MllmReIDConfig that have one value here --------------------------------------------------------

    @property
    def reid_heads(self) -> tuple[str, ...]:
        """Names of the features that the ReID losses act on."""
        return ("vision",)

    @property
    def loss_lambda(self) -> float:
        """Share of the ReID losses in the loss: there is no other."""
        return 1.0

    @property
    def distillation_weight(self) -> float:
        """Weight of the distillation from a text branch: there is none."""
        return 0.0

    @property
    def reid_text(self) -> bool:
        """Whether the ReID losses act on captions: nothing reads them."""
        return False

    @staticmethod
    def travelling_code() -> None:
        """Imports the files that the files imported above import; see the method of [`MllmReIDConfig`]."""
        from .adapters import inject_adapter  # noqa: F401
        from .backbone import Image  # noqa: F401
        from .backbone_gemma3 import Gemma3Backbone  # noqa: F401
        from .backbone_internvl import InternVLBackbone  # noqa: F401
        from .backbone_llava import LlavaBackbone  # noqa: F401
        from .backbone_qwen_vl import QwenVLBackbone  # noqa: F401
        from .backbone_smolvlm import SmolVLMTower  # noqa: F401
        from .backbone_video_llama3 import VideoLlama3Tower  # noqa: F401
        from .crops import CropProcessor  # noqa: F401
        from .encoder_checkpoints import EncoderCheckpoints  # noqa: F401
        from .encoders import ClipTower  # noqa: F401
        from .heads import ReIDFeatures  # noqa: F401
        from .identities import IdentityClassifiers  # noqa: F401
        from .images import open_image  # noqa: F401
        from .losses import id_loss  # noqa: F401
        from .reid_osnet import ReIDOSNetConfig  # noqa: F401
        from .reid_resnet import ReIDResNetConfig  # noqa: F401
        from .reid_swin import ReIDSwinConfig  # noqa: F401
        from .reid_vit import ReIDViTConfig  # noqa: F401
        from .sentence_transformers_mllmreid import PersonEmbedder  # noqa: F401
        from .shipped_models import shipped_folder  # noqa: F401
        from .tensors import at_least_float32  # noqa: F401
        from .tower_packed import PackedTower  # noqa: F401
        from .tower_qwen_vl import QwenTower  # noqa: F401
        from .vision_mllmreid import MllmReIDVisionModel  # noqa: F401
        from .weights import readable  # noqa: F401


def _refuse(name: str, value: Any) -> None:
    """Raises ValueError for a field that needs a language model, unless it has its only value."""
    if value is not None and value != WITHOUT_LLM[name]:
        raise ValueError(f"{name} is {repr(value)[:60]}: an encoder without a language model has none: leave it out")


MllmReIDVisionConfig.register_for_auto_class()
