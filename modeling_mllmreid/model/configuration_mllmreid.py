"""MllmReIDConfig: the configuration of a multimodal LLM, nested, and the fields of person re-identification."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import math
import os
import re
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from .backbone import Backbone
from .backbones import DEFAULT_FAMILY, backbone_of
from .fields import check_crop_size, check_layer, check_range, check_types, check_unit, nested_config
from .pipeline_mllmreid import without_known_entry
from .publishing import PrivatePush

# A name on the Hub, "owner/name" or "name", and the name of one folder or file: neither can leave its place.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)


class MllmReIDConfig(PrivatePush, PreTrainedConfig):
    r"""Configuration of [`MllmReIDModel`]: the multimodal LLM's own configuration, and the fields of re-identification.

    Args:
        mllm_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the wrapped multimodal LLM, of a known family. Defaults to LLaVA-1.5-7B's.
        height, width (`int`, *optional*):
            Size of a person crop in pixels; multiples of the side of an image token. Defaults to the family's size,
            252 and 126 for LLaVA-1.5.
        image_prefix_ids (`list[int]`, *optional*):
            Token ids before the image tokens in every prompt. With them `encode_images` needs no tokenizer.
        reid_on (`"llm"`, `"vision"` or `"both"`, *optional*, defaults to `"both"`):
            Features that the ReID losses act on: the LLM's (DirectReID), the visual encoder's (synchronisation) or
            both.
        loss_lambda (`float`, *optional*, defaults to 0.7):
            Balance of the loss, `(1 - loss_lambda) * language + loss_lambda * reid`, from 0 to 1.
        id_weight, triplet_weight (`float`, *optional*, defaults to 1.0):
            Weights of the ID loss and of the triplet loss within the ReID loss.
        label_smoothing (`float`, *optional*, defaults to 0.1):
            Label smoothing of the ID loss.
        triplet_margin (`float`, *optional*, defaults to 0.3):
            Margin of the batch-hard triplet loss.
        triplet_soft_margin (`bool`, *optional*, defaults to `False`):
            Whether the triplet loss is `log(1 + exp(d_ap - d_an))`, without a margin.
        triplet_scale (`"none"`, `"batch"` or `"unit"`, *optional*, defaults to `"none"`):
            Scale of the features in the triplet loss: as they are, divided by the spread of the batch, or normalised
            to length 1. See `comparable_features`.
        bnneck (`bool`, *optional*, defaults to `True`):
            Whether a batch norm stands between the feature of the triplet loss and the ID classifier.
        feature_after_bn (`bool`, *optional*, defaults to `True`):
            Whether the test feature is taken after the batch norm.
        test_feature (`"llm"`, `"vision"` or `"concat"`, *optional*, defaults to `"llm"`):
            Feature that `encode_images` returns.
        llm_layer (`int`, *optional*, defaults to -1):
            Index into the LLM's hidden states of the layer to pool; -1 is the last layer, after the norm.
        vision_layer (`int`, *optional*):
            Index into the tower's hidden states of the layer to pool. Defaults to the layer that the
            projector reads.
        distillation_weight (`float`, *optional*, defaults to 0.0):
            Weight of KL(text branch || image branch) at target positions; the text branch gets no gradient.
        reid_text (`bool`, *optional*, defaults to `False`):
            Whether the ReID losses act on captions too, for text-to-image search.
        text_loss (`"contrastive"` or `"triplet"`, *optional*, defaults to `"contrastive"`):
            What brings images and captions of a person together. "contrastive": the cross-entropy of their cosine
            similarities, as text-to-image search compares them, with a batch norm for the captions alone. "triplet":
            the batch-hard triplet loss before the batch norm, which images and captions share.
        text_temperature (`float`, *optional*, defaults to 0.07):
            Temperature of the contrastive loss.
        pair_weight (`float`, *optional*, defaults to 0.0):
            Weight of the loss of pairs, which teaches the LLM to answer whether two crops show one person.
        pair_question_ids (`list[int]`, *optional*):
            Token ids of the question, after the image tokens of both crops.
        pair_answer_ids (`list[int]`, *optional*):
            Token ids of yes and of no.
        num_identities (`int`, *optional*, defaults to 0):
            Number of identities of the ID classifiers; 0 means no classifier, as in published exports.
        identities_digest (`str`, *optional*):
            Digest of the identities in label order. It holds no name and is removed with the classifiers.
        trained_on (`list[str]`, *optional*):
            Sorted names of the data sets that this project trained the weights on. A name ends with ":all" if the
            test identities of the data set are among them.
        overlap (`list[str]`, *optional*):
            Descriptions of test identities that were trained on by choice (`allow_overlap`).
        base_licence (`str`, *optional*):
            Licence of the multimodal LLM that training started from. `None` means not recorded.
        backbone, backbone_revision (`str`, *optional*):
            Thin checkpoints: name and commit of the native model, or of the full checkpoint, with the frozen weights.
        backbone_fingerprint (`list[float]`, *optional*):
            Thin checkpoints: a few weights of the backbone, which identify it.
        own_modules (`list[str]`, *optional*):
            Thin checkpoints: modules whose weights the checkpoint holds in addition to the heads.
        adapter (`str`, *optional*):
            Thin checkpoints: sub-folder of the LoRA.
        lora_targets (`str`, *optional*):
            Regular expression that chose the modules of the LoRA, if the user gave one. It is a record; nothing
            matches it.

    Raises:
        ValueError: for a field of the wrong type or out of its range.

    Example:

    ```python
    >>> from modeling_mllmreid import MllmReIDConfig

    >>> config = MllmReIDConfig(height=252, width=126, reid_on="llm")
    >>> config.num_image_tokens
    162
    >>> config.reid_heads
    ('llm',)

    ```
    """

    model_type = "mllmreid"
    # Not the newer `sub_configs_defaults`: every transformers that this code supports knows `sub_configs`.
    sub_configs = {"mllm_config": AutoConfig}

    mllm_config: dict[str, Any] | PreTrainedConfig | None = None
    height: int | None = None
    width: int | None = None
    image_prefix_ids: list[int] | None = None
    reid_on: Literal["llm", "vision", "both"] = "both"
    loss_lambda: float = 0.7
    id_weight: float = 1.0
    triplet_weight: float = 1.0
    label_smoothing: float = 0.1
    triplet_margin: float = 0.3
    triplet_soft_margin: bool = False
    triplet_scale: Literal["none", "batch", "unit"] = "none"
    bnneck: bool = True
    feature_after_bn: bool = True
    test_feature: Literal["llm", "vision", "concat"] = "llm"
    llm_layer: int = -1
    vision_layer: int | None = None
    distillation_weight: float = 0.0
    reid_text: bool = False
    text_loss: Literal["contrastive", "triplet"] = "contrastive"
    text_temperature: float = 0.07
    pair_weight: float = 0.0
    pair_question_ids: list[int] | None = None
    pair_answer_ids: list[int] | None = None
    num_identities: int = 0
    identities_digest: str | None = None
    trained_on: list[str] | None = None
    overlap: list[str] | None = None
    base_licence: str | None = None
    backbone: str | None = None
    backbone_revision: str | None = None
    backbone_fingerprint: list[float] | None = None
    own_modules: list[str] | None = None
    adapter: str | None = None
    lora_targets: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.mllm_config = nested_config("mllm_config", self.mllm_config, DEFAULT_FAMILY)
        check_unit(self.backbone_description, self.vision_config)
        height, width = self.backbone_description.default_size
        self.height = height if self.height is None else self.height
        self.width = width if self.width is None else self.width
        # The field's name in checkpoints of version 0.1.0.
        self.backbone_fingerprint = kwargs.pop("backbone_probe", self.backbone_fingerprint)
        super().__post_init__(**without_known_entry(kwargs))
        check_types(self)
        check_range(self, 0, 1, "loss_lambda", "label_smoothing")
        weights = ("id_weight", "triplet_weight", "distillation_weight", "triplet_margin", "pair_weight")
        check_range(self, 0, math.inf, *weights, "num_identities")
        if self.text_temperature <= 0:
            raise ValueError(f"text_temperature is {self.text_temperature}; give a number above 0")
        if self.reid_text and "llm" not in self.reid_heads:
            raise ValueError("reid_text acts on the LLM's feature; set reid_on to 'llm' or 'both'")
        check_crop_size(self)
        self.backbone_description.check(self.height, self.width)
        check_layer("llm_layer", self.llm_layer, self.get_text_config().num_hidden_layers)
        if self.vision_layer is not None:
            check_layer("vision_layer", self.vision_layer, self.backbone_description.tower.depth)
        vocabulary = self.get_text_config().vocab_size
        for field in ("image_prefix_ids", "pair_question_ids", "pair_answer_ids"):
            wrong = [number for number in getattr(self, field) or () if not 0 <= number < vocabulary]
            if wrong:
                raise ValueError(f"{field} holds {wrong[0]}; give ids from 0 to {vocabulary - 1}")
        if self.pair_answer_ids is not None and len(set(self.pair_answer_ids)) != 2:
            raise ValueError(f"pair_answer_ids is {self.pair_answer_ids}; give the ids of yes and of no")
        if self.pair_question_ids == []:
            raise ValueError("pair_question_ids is []; give the ids of a question")
        self._check_names()

    def _check_names(self) -> None:
        """Raises ValueError for a name that leads out of the checkpoint's folder or of the Hub."""
        if self.adapter is not None and not PLAIN_NAME.fullmatch(self.adapter):
            raise ValueError(f"adapter is {self.adapter!r}; give the name of a sub-folder of the checkpoint")
        name, revision = self.backbone, self.backbone_revision
        folder = name is not None and os.path.isabs(name) and not re.match(r"[/\\]{2}", name)
        if name is not None and not folder and (not HUB_NAME.fullmatch(name) or ".." in name):
            raise ValueError(f"backbone is {name!r}; give a name on the Hub or a folder's absolute path")
        if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
            raise ValueError(f"backbone_revision is {revision!r}; give a commit, a tag or a branch")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MllmReIDConfig":
        """Makes a configuration of stored fields.

        Before `text_loss` was a field, captions had the triplet loss and the batch norm of the images.
        """
        if config_dict.get("reid_text") and "text_loss" not in config_dict:
            config_dict = {**config_dict, "text_loss": "triplet"}
        return super().from_dict(config_dict, **kwargs)

    @property
    def backbone_description(self) -> Backbone:
        """What is particular to the family of the multimodal LLM."""
        return backbone_of(self.mllm_config)

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Configuration of the vision tower."""
        vision_config: PreTrainedConfig = self.mllm_config.vision_config
        return vision_config

    @property
    def reid_heads(self) -> tuple[str, ...]:
        """Names of the features that the ReID losses act on."""
        return ("llm", "vision") if self.reid_on == "both" else (self.reid_on,)

    @property
    def has_text_bottleneck(self) -> bool:
        """Whether captions have a batch norm of their own."""
        return self.reid_text and self.text_loss == "contrastive" and self.bnneck

    @property
    def num_image_tokens(self) -> int:
        """Image tokens that one crop of height x width takes in a prompt."""
        return self.backbone_description.num_image_tokens(self.height, self.width)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Returns the language model's configuration, which generation and the Trainer ask for."""
        text_config: PreTrainedConfig = self.mllm_config.get_text_config(*args, **kwargs)
        return text_config

    @staticmethod
    def travelling_code() -> None:
        """Imports every file that travels with a checkpoint.

        transformers keeps the first model class that it saw with a configuration class. It makes a new configuration
        class only if a file that this one imports has changed. With these imports every file of a checkpoint counts,
        and two checkpoints with different code each run their own.
        Before 5.11, transformers copies only the files that this one imports, and stops at a file that it did not
        copy. With these imports no file is left out, and `versions` reports the versions that are needed.
        """
        from .adapters import inject_adapter  # noqa: F401
        from .backbone_gemma3 import Gemma3Backbone  # noqa: F401
        from .backbone_internvl import InternVLBackbone  # noqa: F401
        from .backbone_llava import LlavaBackbone  # noqa: F401
        from .backbone_loading import plain_config  # noqa: F401
        from .backbone_qwen_vl import QwenVLBackbone  # noqa: F401
        from .backbone_smolvlm import SmolVLMTower  # noqa: F401
        from .backbone_video_llama3 import VideoLlama3Tower  # noqa: F401
        from .checkpoints import ReIDCheckpoints  # noqa: F401
        from .crops import CropProcessor  # noqa: F401
        from .encoders import ClipTower  # noqa: F401
        from .heads import ReIDFeatures  # noqa: F401
        from .identities import IdentityClassifiers  # noqa: F401
        from .images import open_image  # noqa: F401
        from .language_branches import LabelLoss  # noqa: F401
        from .losses import id_loss  # noqa: F401
        from .mllm_forward import MllmForward  # noqa: F401
        from .modeling_mllmreid import MllmReIDModel  # noqa: F401
        from .pairs import Reading  # noqa: F401
        from .processing_mllmreid import MllmReIDProcessor  # noqa: F401
        from .prompts import Prompt  # noqa: F401
        from .reid_osnet import ReIDOSNetConfig  # noqa: F401
        from .reid_resnet import ReIDResNetConfig  # noqa: F401
        from .reid_swin import ReIDSwinConfig  # noqa: F401
        from .reid_vit import ReIDViTConfig  # noqa: F401
        from .sentence_transformers_mllmreid import PersonEmbedder  # noqa: F401
        from .shipped_models import shipped_folder  # noqa: F401
        from .tensors import at_least_float32  # noqa: F401
        from .tower_packed import PackedTower  # noqa: F401
        from .tower_qwen_vl import QwenTower  # noqa: F401
        from .towers import TowerOutput  # noqa: F401
        from .weights import readable  # noqa: F401


MllmReIDConfig.register_for_auto_class()
