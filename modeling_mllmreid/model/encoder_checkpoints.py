"""Builds, loads and saves [`MllmReIDVisionModel`]: from an encoder, from a checkpoint, with or without a LoRA."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .adapters import inject_adapter, merge_adapter
from .configuration_vision_mllmreid import WITHOUT_LLM
from .encoders import check_encoder, vision_part, without_pooler
from .identities import IdentityClassifiers
from .pipeline_mllmreid import person_reid_entry, write_modules
from .pooling import WITH_CLASS_TOKEN, no_class_token
from .publishing import PrivatePush
from .shipped_models import shipped_folder
from .weights import (
    HUB,
    Hub,
    Source,
    check_finite,
    load_whole,
    owner_only,
    read_config,
    read_weights,
    size_error,
    unknown_error,
)


class EncoderCheckpoints(PrivatePush, IdentityClassifiers):
    """The methods of [`MllmReIDVisionModel`] that build, load and save it; a base class of the model."""

    # ---- building ------------------------------------------------------------------------------------------------

    @classmethod
    def from_encoder_pretrained(
        cls,
        name_or_path: Source,
        *,
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        **fields: Any,
    ) -> Self:
        """Creates a model from the weights of a vision encoder; only the ReID head and GeM's exponent are new.

        Of a checkpoint of two encoders, such as CLIP's or SigLIP's, only the vision encoder is loaded.

        Args:
            name_or_path (`str` or `os.PathLike`):
                The encoder's folder or its name on the Hub, such as "facebook/dinov2-small".
            dtype (`torch.dtype` or `str`, *optional*, defaults to `torch.float32`):
                Number format of the weights.
            revision (`str`, *optional*):
                Commit, tag or branch on the Hub.
            **fields:
                Fields of [`MllmReIDVisionConfig`].

        Returns:
            [`MllmReIDVisionModel`]

        Raises:
            ImportError: for an encoder of timm where timm is not installed.
            ValueError: for a model that is no vision encoder or takes no crops of this size, for pickled or broken
                weights, and for a weight that is missing, of another size or not finite.
        """
        hub: Hub = {} if revision is None else {"revision": revision}
        config: Any = encoder_config(cls.config_class, name_or_path, hub, **fields)
        stored = read_config(AutoConfig, name_or_path, hub, trust_remote_code=False)
        options = {**hub, "dtype": dtype, "config": config.vision_config, **without_pooler(config.vision_config)}
        # A checkpoint of two encoders has weights that the vision encoder does not have.
        with _without_report():
            encoder, _ = load_whole(AutoModel.from_pretrained, name_or_path, hub, options, stored=stored, left=[""])
        return cls.from_encoder(encoder, config)

    @classmethod
    def from_encoder(cls, encoder: PreTrainedModel, config: PreTrainedConfig) -> Self:
        """Creates a model around an encoder in memory, without a copy. config: its [`MllmReIDVisionConfig`]."""
        # On the meta device, so that there is never a second encoder.
        with torch.device("meta"):
            model: Any = cls(config)
        model.tower = encoder
        for module in (model.reid_head, model.pooling):
            module.to_empty(device=encoder.device)
            module.float().apply(model._init_weights)
        model.config.vision_config = encoder.config
        model.eval()
        return model  # type: ignore[no-any-return]

    def add_lora(self, settings: dict[str, Any]) -> None:
        """Adds a new LoRA to the encoder, and records it in the configuration.

        Args:
            settings (`dict[str, Any]`):
                `target_modules` (names of layers), `r`, `lora_alpha` and `lora_dropout` of `peft.LoraConfig`.

        Raises:
            ImportError, ValueError: as `inject_adapter`.
        """
        inject_adapter(self.tower, settings)
        self.config.lora_modules = list(settings["target_modules"])
        self.config.lora_rank, self.config.lora_alpha = settings["r"], float(settings["lora_alpha"])
        self.config.lora_dropout = float(settings["lora_dropout"])

    def merge_and_unload(self) -> Self:
        """Merges the LoRA into the encoder's weights, in place. Returns the model."""
        merge_adapter(self.tower)
        self.config.lora_modules = self.config.lora_targets = None
        return self

    # ---- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path: Source | None, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Loads a checkpoint as in transformers, and checks that every weight comes from it.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A checkpoint's folder, its name on the Hub, or the name of a model that comes with the package, such
                as "pedestrians-small".
            config ([`MllmReIDVisionConfig`], *optional*):
                Configuration in place of the checkpoint's own.
            **kwargs:
                As in transformers. Fields of the configuration replace the stored ones.

        Returns:
            [`MllmReIDVisionModel`]

        Raises:
            ValueError: for pickled or broken weights, and for a weight that is missing, unknown, of another size or
                not finite. Only a batch norm, an ID classifier and GeM's exponent may be new, if the stored
                configuration has none.
        """
        if name_or_path is None:
            return super().from_pretrained(name_or_path, *args, config=config, **kwargs)
        name_or_path = shipped_folder(name_or_path)
        if kwargs.get("quantization_config") is not None:
            raise ValueError("quantization_config: an encoder without a language model is not quantised: leave it out")
        hub = {key: kwargs[key] for key in HUB if kwargs.get(key) is not None}
        stored = read_config(cls.config_class, name_or_path, hub)
        # Those of a language model too: the configuration refuses them by name.
        known = cls.config_class.__annotations__.keys() | WITHOUT_LLM.keys()
        fields = {name: kwargs.pop(name) for name in known & kwargs.keys()}
        config = stored if config is None else config
        if fields:
            config = cls.config_class.from_dict({**config.to_dict(), **fields})
        with_loading_info = kwargs.pop("output_loading_info", False)

        def load(name: Source, **options: Any) -> Any:
            return super(EncoderCheckpoints, cls).from_pretrained(name, *args, config=config, **options)

        stored_names, names = _own_weight_names(stored), _own_weight_names(config)
        changed = {"new": sorted(names - stored_names), "left": sorted(stored_names - names)}
        model, info = load_whole(load, name_or_path, hub, kwargs, stored=stored, **changed)
        return (model, info) if with_loading_info else model

    def load_weights(self, folder: str | os.PathLike[str]) -> None:
        """Loads the weights of a checkpoint of this model, for a resumed training.

        Raises:
            ValueError: for a weight that is missing, unknown, of another size or not finite, before any copy.
        """
        weights, target = read_weights(folder, {}), self.state_dict()
        for name in sorted(target.keys() ^ weights.keys()):
            if name in target:
                raise ValueError(f"{folder}: the weight {name} is missing: it is another model's or not whole")
            raise unknown_error(folder, name)
        for name, weight in weights.items():
            if weight.shape != target[name].shape:
                raise size_error(folder, name, weight.shape, target[name].shape)
        check_finite(weights, folder)
        with torch.no_grad():
            for name, weight in weights.items():
                target[name].copy_(weight)

    # ---- saving --------------------------------------------------------------------------------------------------

    @owner_only()
    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        save_original_format: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the model as in transformers; config.json names the pipeline, modules.json an embedder.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder.
            state_dict (`dict[str, torch.Tensor]`, *optional*):
                Weights in place of the model's own.
            save_original_format (`bool`, *optional*, defaults to `False`):
                As in transformers, but off: with legacy names a Trainer's resume skips weights with only a warning.
            **kwargs:
                As in transformers.
        """
        # A folder of this machine, where the checkpoint may be published.
        self.config.vision_config._name_or_path = ""
        self.config.custom_pipelines = person_reid_entry()
        super().save_pretrained(
            save_directory, *args, state_dict=state_dict, save_original_format=save_original_format, **kwargs
        )
        if kwargs.get("is_main_process", True):
            write_modules(save_directory)

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs: Any) -> str:
        """Pushes as [`PrivatePush`] does, without the ID classifier."""
        with self.without_classifier():
            return super().push_to_hub(repo_id, private=private, **kwargs)


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers from listing the weights of a checkpoint that the vision encoder does not have."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def encoder_config(config_class: Any, name_or_path: Source, hub: Hub, **fields: Any) -> Any:
    """Returns the configuration of a new model around a native vision encoder.

    Args:
        config_class (`type`):
            [`MllmReIDVisionConfig`].
        name_or_path (`str` or `os.PathLike`):
            The encoder's folder or its name on the Hub.
        hub (`dict`):
            Arguments of `from_pretrained` that locate files (`HUB`).
        **fields:
            Fields of the configuration.

    Raises:
        ValueError: for a model that is no vision encoder, and for a field that does not fit it.
    """
    native = read_config(AutoConfig, name_or_path, hub, trust_remote_code=False)
    config = config_class(vision_config=vision_part(native), **fields)
    prefix = check_encoder(config.vision_config, config.height, config.width)
    if config.pooling in WITH_CLASS_TOKEN and not prefix:
        raise no_class_token(config)
    return config


def _own_weight_names(config: Any) -> set[str]:
    """Returns the prefixes of the weights outside of the encoder that a checkpoint of this configuration has."""
    used = {
        "reid_head.bottleneck.": config.bnneck,
        "reid_head.classifier.": config.num_identities,
        "pooling.": config.pooling == "gem",
    }
    return {name for name, is_used in used.items() if is_used}
