"""Configuration of MLLMReID: the multimodal LLM's own configuration, nested, and what person re-identification adds."""

# First: its error names the versions that are needed.
from .versions import check_versions  # noqa: F401

# isort: split
import math
import os
import re
from typing import Literal

from transformers import AutoConfig, PreTrainedConfig

from .fields import check_crop_size, check_layer, check_range, check_types, nested_config
from .pipeline_mllmreid import without_known_entry
from .publishing import PrivatePush

# A name on the Hub, "owner/name" or "name", and the name of one folder or file: neither can lead anywhere else.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", re.ASCII)


class MllmReIDConfig(PrivatePush, PreTrainedConfig):
    r"""Configuration of [`MllmReIDModel`].

    mllm_config (`dict` or `PreTrainedConfig`):
        Configuration of the wrapped multimodal LLM (a LLaVA); `None` is LLaVA-1.5-7B's.
    height, width (`int`):
        Size in pixels of a person crop; multiples of the vision tower's patch size.
    image_prefix_ids (`list[int]`):
        Ids that stand before the image tokens in every prompt: with them `encode_images` needs no tokenizer.
    reid_on (`"llm"`, `"vision"` or `"both"`):
        Which feature the ReID losses act on: LLM (DirectReID), visual encoder (synchronisation), or both.
    loss_lambda (`float`):
        The balance `(1 - loss_lambda) * language + loss_lambda * reid`: 0 is the language loss alone, 1 ReID alone.
    id_weight, triplet_weight (`float`):
        Weights of the ID loss and the triplet loss inside the ReID loss.
    label_smoothing (`float`):
        Of the ID loss, in the eps/C form.
    triplet_margin (`float`), triplet_soft_margin (`bool`):
        Hinge margin of the batch-hard triplet loss, or its soft form `log(1 + exp(d_ap - d_an))`.
    bnneck (`bool`):
        Triplet on the feature before the batch norm, ID classifier after it.
    feature_after_bn (`bool`):
        The test feature is taken after the batch norm.
    test_feature (`"llm"`, `"vision"` or `"concat"`):
        What `encode_images` returns.
    llm_layer (`int`):
        LLM layer whose hidden states are pooled, counted as in `hidden_states`; -1 is the last, after the norm.
    vision_layer (`int`, *optional*):
        Tower layer whose patches are pooled; `None` is the layer that the multimodal LLM itself reads.
    distillation_weight (`float`):
        Weight of KL(text branch, detached -> image branch) on the target positions.
    reid_text (`bool`):
        The ReID losses act on the captions' latents too, for text-to-image search.
    num_identities (`int`):
        Rows of the ID classifiers; 0 means none (published exports).
    identities_digest (`str`, *optional*):
        Digest of the people, in the order of the ID classifiers' rows; it holds no name. Dropped with the classifiers.
    trained_on (`list[str]`, *optional*):
        Names of the data sets that the weights were trained on by this project, sorted; ":all" behind one says that
        its test people were trained on too.
    overlap (`list[str]`, *optional*):
        In words, test people who were knowingly trained on (`allow_overlap`).
    base_licence (`str`, *optional*):
        Licence of the multimodal LLM that training began with, as its card or its user says; `None` is not recorded.
    backbone, backbone_revision (`str`, *optional*):
        Of a thin checkpoint: name and commit of the LLaVA (or full checkpoint) whose frozen weights it stands on.
    backbone_fingerprint (`list[float]`, *optional*):
        A few of the backbone's weights, which distinguish it from another one of the same size.
    own_modules (`list[str]`, *optional*):
        Modules besides the heads whose weights a thin checkpoint holds itself.
    adapter (`str`, *optional*):
        Sub-folder of a thin checkpoint with its LoRA.
    lora_targets (`str`, *optional*):
        The regular expression that its modules were chosen by, where it was not our own; a record that nothing runs.
    """

    model_type = "mllmreid"
    # Not the newer `sub_configs_defaults`: this way is understood by every transformers that this code runs on.
    sub_configs = {"mllm_config": AutoConfig}

    mllm_config: dict | PreTrainedConfig | None = None
    height: int = 252
    width: int = 126
    image_prefix_ids: list[int] | None = None
    reid_on: Literal["llm", "vision", "both"] = "both"
    loss_lambda: float = 0.7
    id_weight: float = 1.0
    triplet_weight: float = 1.0
    label_smoothing: float = 0.1
    triplet_margin: float = 0.3
    triplet_soft_margin: bool = False
    bnneck: bool = True
    feature_after_bn: bool = True
    test_feature: Literal["llm", "vision", "concat"] = "llm"
    llm_layer: int = -1
    vision_layer: int | None = None
    distillation_weight: float = 0.0
    reid_text: bool = False
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

    def __post_init__(self, **kwargs):
        self.mllm_config = nested_config("mllm_config", self.mllm_config, "llava")
        if self.mllm_config.model_type != "llava":
            raise ValueError(f"mllm_config is of model_type {self.mllm_config.model_type!r}; give a LLaVA's, 'llava'")
        # Its name in checkpoints of version 0.1.0.
        self.backbone_fingerprint = kwargs.pop("backbone_probe", self.backbone_fingerprint)
        super().__post_init__(**without_known_entry(kwargs))
        check_types(self)
        check_range(self, 0, 1, "loss_lambda", "label_smoothing")
        weights = ("id_weight", "triplet_weight", "distillation_weight", "triplet_margin")
        check_range(self, 0, math.inf, *weights, "num_identities")
        if self.reid_text and "llm" not in self.reid_heads:
            raise ValueError("reid_text acts on the LLM's feature; set reid_on to 'llm' or 'both'")
        check_crop_size(self, self.vision_config)
        self._check_layers()
        vocabulary = self.get_text_config().vocab_size
        wrong = [number for number in self.image_prefix_ids or () if not 0 <= number < vocabulary]
        if wrong:
            raise ValueError(f"image_prefix_ids holds {wrong[0]}; give ids from 0 to {vocabulary - 1}")
        self._check_names()

    def _check_layers(self) -> None:
        depth = self.vision_config.num_hidden_layers
        for name, layers in (("text", self.get_text_config().num_hidden_layers), ("vision", depth)):
            if type(layers) is not int or layers < 1:
                raise ValueError(f"mllm_config.{name}_config.num_hidden_layers is {layers!r}; give 1 or more")
        check_layer("llm_layer", self.llm_layer, self.get_text_config().num_hidden_layers)
        if self.vision_layer is not None:
            check_layer("vision_layer", self.vision_layer, depth)
        read = self.mllm_config.vision_feature_layer
        if read == []:
            raise ValueError("mllm_config.vision_feature_layer is []; give at least one layer")
        for layer in [read] if isinstance(read, int) else read:
            check_layer("mllm_config.vision_feature_layer", layer, depth)

    def _check_names(self) -> None:
        """What a foreign config.json names must not lead out of its folder or of the Hub."""
        if self.adapter is not None and not PLAIN_NAME.fullmatch(self.adapter):
            raise ValueError(f"adapter is {self.adapter!r}; give the name of a sub-folder of the checkpoint")
        name, revision = self.backbone, self.backbone_revision
        folder = name is not None and os.path.isabs(name) and not re.match(r"[/\\]{2}", name)
        if name is not None and not folder and (not HUB_NAME.fullmatch(name) or ".." in name):
            raise ValueError(f"backbone is {name!r}; give a name on the Hub or a folder's absolute path")
        if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
            raise ValueError(f"backbone_revision is {revision!r}; give a commit, a tag or a branch")

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Configuration of the vision tower."""
        return self.mllm_config.vision_config

    @property
    def reid_heads(self) -> tuple[str, ...]:
        """Names of the features that the ReID losses act on."""
        return ("llm", "vision") if self.reid_on == "both" else (self.reid_on,)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens that one crop of height x width takes in a prompt."""
        patch = self.vision_config.patch_size
        patches = (self.height // patch) * (self.width // patch)
        return patches if self.mllm_config.vision_feature_select_strategy == "default" else patches + 1

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """The language model's configuration, where generation and the Trainer look for it."""
        return self.mllm_config.get_text_config(*args, **kwargs)

    @staticmethod
    def travelling_code() -> tuple:
        """Something of each file that travels with a checkpoint.

        transformers keeps the first model class that it saw with a configuration class, and makes a new configuration
        class where a file that this one imports has changed. By these imports every file of a checkpoint counts: of
        two checkpoints whose code differs each runs its own.
        Before 5.11 it copies out of a folder only what this file itself imports, and stops at a file that it did not
        copy: by these imports there is none, and `versions` says what is needed.
        """
        from .adapters import inject_adapter
        from .checkpoints import ReIDCheckpoints
        from .crops import CropProcessor
        from .heads import ReIDHead
        from .images import open_image
        from .losses import id_loss
        from .modeling_mllmreid import MllmReIDModel
        from .processing_mllmreid import MllmReIDProcessor
        from .publishing import without_local_paths
        from .tensors import gather_with_gradient
        from .weights import read_config

        return (
            inject_adapter,
            ReIDCheckpoints,
            CropProcessor,
            gather_with_gradient,
            ReIDHead,
            open_image,
            without_local_paths,
            id_loss,
            MllmReIDModel,
            MllmReIDProcessor,
            read_config,
        )


MllmReIDConfig.register_for_auto_class()
