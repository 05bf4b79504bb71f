"""Builds, loads and saves models: full checkpoints hold every weight, thin ones only the trained weights."""

import contextlib
import copy
import os
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .adapters import (
    ADAPTER,
    SETTINGS,
    WEIGHTS,
    adapter_from_state_dict,
    adapter_weights,
    check_quantized,
    for_language_model,
    inject_adapter,
    merge_adapter,
    read_adapter,
    save_adapter,
)
from .backbone_loading import load_backbone, load_native, plain_config
from .backbones import check_family
from .identities import IdentityClassifiers
from .pipeline_mllmreid import person_reid_entry, write_modules
from .publishing import PrivatePush, is_local
from .weights import (
    CONFIG,
    HUB,
    Hub,
    Source,
    check_files,
    check_finite,
    load_whole,
    owner_only,
    read_config,
    read_fields,
    read_weights,
    size_error,
)

# Arguments that the backbone of a thin checkpoint gets too; a revision or a sub-folder is the checkpoint's own.
BACKBONE = ("cache_dir", "force_download", "local_files_only", "token", "dtype", "quantization_config")
BACKBONE = (*BACKBONE, "device_map", "max_memory", "offload_folder", "attn_implementation")


class ReIDCheckpoints(PrivatePush, IdentityClassifiers):
    """The methods of [`MllmReIDModel`] that build, load and save it; a base class of the model."""

    # ---- building ------------------------------------------------------------------------------------------------

    @classmethod
    def from_mllm_pretrained(
        cls,
        name_or_path: Source,
        *,
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        quantization_config: Any = None,
        device_map: Any = None,
        **fields: Any,
    ) -> Self:
        """Creates a model from the weights of a native multimodal LLM; only the ReID heads are new.

        Args:
            name_or_path (`str` or `os.PathLike`):
                Its folder or its name on the Hub, such as "llava-hf/llava-1.5-7b-hf".
            dtype (`torch.dtype` or `str`, *optional*, defaults to `torch.float32`):
                Number format of the weights.
            revision (`str`, *optional*):
                Commit, tag or branch on the Hub.
            quantization_config (`BitsAndBytesConfig`, *optional*):
                Quantisation of the language model alone.
            device_map (`str` or `dict`, *optional*):
                As in transformers, with the native model's names. Without it quantised weights go to a GPU.
            **fields:
                Fields of [`MllmReIDConfig`].

        Returns:
            [`MllmReIDModel`]

        Raises:
            ValueError: for a model of no known family, for pickled or broken weights, and for a weight that is missing,
                of another size or not finite.
        """
        options = {"dtype": dtype, "revision": revision, "device_map": device_map}
        if quantization_config is not None:
            options["quantization_config"] = for_language_model(quantization_config)
        return cls.from_mllm(load_native(name_or_path, {"revision": revision}, options), **fields)

    @classmethod
    def from_mllm(cls, mllm: PreTrainedModel, **config_fields: Any) -> Self:
        """Creates a model around a multimodal LLM in memory, without a copy. config_fields: of [`MllmReIDConfig`]."""
        check_family(mllm.config.model_type)
        return cls._around(mllm, cls.config_class(mllm_config=plain_config(mllm), **config_fields))

    @classmethod
    def _around(cls, mllm: PreTrainedModel, config: Any) -> Self:
        # On the meta device, so that there is never a second full-size model.
        with torch.device("meta"):
            model = cls(config)
        model.mllm = mllm
        if getattr(mllm.config, "quantization_config", None) is None:
            # One object, as in a model created from its configuration; the copy has another choice of attention.
            model.config.mllm_config = mllm.config
        model.reid_head.to_empty(device=mllm.device)
        model.reid_head.float().apply(model._init_weights)
        if getattr(mllm, "is_quantized", False):
            check_quantized(model)
        if mllm.generation_config is not None:
            model.generation_config = copy.deepcopy(mllm.generation_config)
        return model

    # ---- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, name_or_path: Source | None, *args: Any, config: Any = None, is_trainable: bool = False, **kwargs: Any
    ) -> Self:
        """Loads a full or a thin checkpoint.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A checkpoint's folder or its name on the Hub.
            config ([`MllmReIDConfig`], *optional*):
                Configuration in place of the checkpoint's own.
            is_trainable (`bool`, *optional*, defaults to `False`):
                Whether the training of a thin checkpoint continues. Its own weights are then trained in float32; the
                backbone is frozen.
            **kwargs:
                As in transformers, such as `dtype`, `device_map` and `quantization_config`. Fields of the configuration
                replace the stored ones. `revision` is the checkpoint's; the backbone has its own.

        Returns:
            [`MllmReIDModel`]

        Raises:
            OSError: if files or the backbone are missing.
            ValueError: for pickled or broken weights, missing or unknown weights, and another backbone.
        """
        if name_or_path is None:
            return super().from_pretrained(name_or_path, *args, config=config, **kwargs)  # type: ignore[no-any-return]
        hub = {key: kwargs[key] for key in HUB if kwargs.get(key) is not None}
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = for_language_model(kwargs["quantization_config"])
        stored = read_config(cls.config_class, name_or_path, hub)
        fields = {name: kwargs.pop(name) for name in cls.config_class.__annotations__ if name in kwargs}
        config = stored if config is None else config
        if fields:
            config = cls.config_class.from_dict({**config.to_dict(), **fields})
        # Changed fields may add weights to a head or remove some.
        stored_names, names = head_weight_names(stored), head_weight_names(config)
        changed = {"new": sorted(names - stored_names), "left": sorted(stored_names - names)}
        if config.backbone is not None:
            return cls._from_thin(name_or_path, config, hub, is_trainable, kwargs, changed)  # type: ignore[no-any-return]
        with_loading_info = kwargs.pop("output_loading_info", False)

        def load(name: Source, **options: Any) -> Any:
            return super(ReIDCheckpoints, cls).from_pretrained(name, *args, config=config, **options)

        model, info = load_whole(load, name_or_path, hub, kwargs, stored=stored, **changed)
        if getattr(model, "is_quantized", False):
            check_quantized(model)
        return (model, info) if with_loading_info else model  # type: ignore[return-value]

    @classmethod
    def _from_thin(
        cls,
        name_or_path: Source,
        config: Any,
        hub: Hub,
        is_trainable: bool,
        kwargs: dict[str, Any],
        changed: dict[str, list[str]],
    ) -> Any:
        with_loading_info = kwargs.pop("output_loading_info", False)
        config = copy.deepcopy(config)
        check_files(name_or_path, hub)
        if config.adapter is None and read_fields(name_or_path, f"{ADAPTER}/{SETTINGS}", hub) is not None:
            raise ValueError(f"{name_or_path}: {CONFIG} names no adapter, but there is one: get it again")
        mllm = load_backbone(cls, config, _backbone_options(kwargs, config), name_or_path)
        own = read_weights(name_or_path, hub)
        settings, adapter = (None, {}) if config.adapter is None else read_adapter(name_or_path, config.adapter, hub)
        for name, weight in own.items():
            # Before the model allocates a classifier of the size in config.json.
            if name.endswith(".classifier.weight") and weight.ndim and len(weight) < config.num_identities:
                raise size_error(name_or_path, name, weight.shape, (config.num_identities, *weight.shape[1:]))
        config.mllm_config = plain_config(mllm)
        model = cls._around(mllm, config)
        if settings is not None:
            try:
                inject_adapter(mllm, settings)
            except ValueError as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{name_or_path}: its LoRA is another model's ({reason})") from error
        model._set_trainable(is_trainable)
        missing = model.fill_weights(own, adapter, where=str(name_or_path), **changed)
        model.train(is_trainable)
        info = {"missing_keys": missing, "unexpected_keys": [], "mismatched_keys": [], "error_msgs": {}}
        return (model, info) if with_loading_info else model

    @torch.no_grad()
    def _set_trainable(self, is_trainable: bool) -> None:
        """Freezes all but a thin checkpoint's own weights; a LoRA that is not trained gets the model's format."""
        self.requires_grad_(False)
        own = (*(self.config.own_modules or ()), "reid_head")
        for name, parameter in self.named_parameters():
            if is_trainable and (within(name, own) or ".lora_" in name):
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
            elif ".lora_" in name:
                parameter.data = parameter.data.to(self.dtype)

    def own_weights(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns the weights that a checkpoint holds in addition to a LoRA: all, or the trained ones of a thin one."""
        state = self.state_dict() if state_dict is None else state_dict
        if self.config.backbone is None:
            return state
        modules = (*(self.config.own_modules or ()), "reid_head")
        return {name: weight for name, weight in state.items() if within(name, modules)}

    @torch.no_grad()
    def fill_weights(
        self,
        own: dict[str, Tensor],
        adapter: dict[str, Tensor],
        *,
        where: str,
        new: Iterable[str] = (),
        left: Iterable[str] = (),
    ) -> list[str]:
        """Copies all weights of a checkpoint into the model, in the model's number formats.

        Args:
            own, adapter (`dict[str, torch.Tensor]`):
                The checkpoint's weights, and its LoRA's under PEFT's names.
            where (`str`):
                The checkpoint, for errors.
            new (`Iterable[str]`, *optional*):
                Prefixes of weights that the checkpoint may lack.
            left (`Iterable[str]`, *optional*):
                Prefixes of weights of the checkpoint that the model may lack.

        Returns:
            `list[str]`: names of the weights that the checkpoint lacks.

        Raises:
            ValueError: for a weight that is missing, unknown, of another size or not finite, before any copy.
        """
        tied = set(getattr(self, "all_tied_weights_keys", None) or ())
        own = {name: weight for name, weight in own.items() if not name.startswith(tuple(left))}
        pairs: tuple[tuple[dict[str, Tensor], dict[str, Tensor], set[str]], ...] = (
            (self.own_weights(), own, tied),
            (adapter_weights(self.mllm), adapter, set()),
        )
        missing = []
        for target, weights, optional in pairs:
            for name in sorted(target.keys() ^ weights.keys()):
                if name in target and name.startswith(tuple(new)):
                    missing.append(name)
                elif name not in optional:
                    problem = "is missing" if name in target else "is not part of this model"
                    raise ValueError(f"{where}: the weight {name} {problem}: it is another model's or not whole")
            for name, weight in weights.items():
                if weight.shape != target[name].shape:
                    raise size_error(where, name, weight.shape, target[name].shape)
            check_finite(weights, where)
        for target, weights, _ in pairs:
            for name, weight in weights.items():
                target[name].copy_(weight)
        return missing

    def load_weights(self, folder: str | os.PathLike[str]) -> None:
        """Loads the weights of a checkpoint of this model, for a resumed training. Raises as `fill_weights`."""
        adapter = read_adapter(folder, self.config.adapter, {})[1] if self.config.adapter else {}
        self.fill_weights(read_weights(folder, {}), adapter, where=str(folder))

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
        """Saves a full checkpoint, or a thin one if the configuration has a backbone.

        A full checkpoint does not name the native model's folder, since the checkpoint may be published.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder.
            state_dict (`dict[str, torch.Tensor]`, *optional*):
                Weights of the whole model in place of its own.
            save_original_format (`bool`, *optional*, defaults to `False`):
                As in transformers, but off: with legacy names a Trainer's resume skips weights with only a
                warning.
            **kwargs:
                As in transformers.
        """
        self.config.mllm_config._name_or_path = ""
        self.config.custom_pipelines = person_reid_entry()
        thin = self.config.backbone is not None
        own = self.own_weights(state_dict) if thin or state_dict is not None else None
        super().save_pretrained(
            save_directory, *args, state_dict=own, save_original_format=save_original_format, **kwargs
        )
        if not kwargs.get("is_main_process", True):
            return
        write_modules(save_directory)
        if not (thin and self.config.adapter):
            # An earlier checkpoint in this folder may have left an adapter, which would be loaded with this one.
            for stale in (SETTINGS, WEIGHTS):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(save_directory, ADAPTER, stale))
        else:
            folder = os.path.join(save_directory, self.config.adapter)
            weights = adapter_weights(self.mllm) if state_dict is None else adapter_from_state_dict(state_dict)
            save_adapter(self.mllm, folder, weights, self.config.backbone, self.config.backbone_revision)

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs: Any) -> str:
        """Pushes as [`PrivatePush`] does, without the ID classifier. Raises ValueError if the backbone is a folder."""
        if self.config.backbone is not None and is_local(self.config.backbone):
            raise ValueError(
                f"the backbone {self.config.backbone} is a folder, which others do not have: name the backbone on the "
                "Hub, or merge_and_unload() first"
            )
        with self.without_classifier():
            return super().push_to_hub(repo_id, private=private, **kwargs)

    def merge_and_unload(self) -> Any:
        """Merges the LoRA into the weights and makes a thin model full, in place. Returns the model."""
        merge_adapter(self.mllm)
        self.config.backbone = self.config.backbone_revision = self.config.backbone_fingerprint = None
        self.config.own_modules = self.config.adapter = self.config.lora_targets = None
        return self


def head_weight_names(config: Any) -> set[str]:
    """Returns the prefixes of the head weights that a checkpoint of this configuration has."""
    modules = {"bottleneck": config.bnneck, "classifier": config.num_identities}
    names = {f"reid_head.{name}.{module}." for name in config.reid_heads for module, used in modules.items() if used}
    return names | ({"reid_head.llm.text_bottleneck."} if config.has_text_bottleneck else set())


def _backbone_options(kwargs: dict[str, Any], config: Any) -> dict[str, Any]:
    """Returns the arguments of a thin checkpoint's `from_pretrained` that its backbone gets."""
    options = {key: kwargs[key] for key in BACKBONE if kwargs.get(key) is not None}
    options.setdefault("dtype", config.dtype or "auto")
    if isinstance(options.get("device_map"), dict):
        # The map has the model's names; the backbone has its own.
        devices = {key.removeprefix("mllm").removeprefix("."): item for key, item in options["device_map"].items()}
        options["device_map"] = {key: item for key, item in devices.items() if not key.startswith("reid_head")}
    return options


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter or module is one of some modules (or parameters) or lies within one. All are full names."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
