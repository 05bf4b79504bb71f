"""Checkpoints: full ones hold every weight, thin ones what was trained beside a backbone that they name."""

import contextlib
import copy
import json
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, has_file

from .adapters import SETTINGS, WEIGHTS, adapter_of, adapter_weights, inject_adapter, merge_adapter, save_adapter
from .pipeline_mllmreid import person_reid_entry
from .quantization import check_quantized, for_language_model

FULL_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# What of a call belongs to the backbone as well; a revision or a sub-folder is the checkpoint's own.
BACKBONE = ("cache_dir", "force_download", "local_files_only", "token", "dtype", "quantization_config")
BACKBONE = (*BACKBONE, "device_map", "max_memory", "offload_folder", "attn_implementation")


class ReIDCheckpoints:
    """How [`MllmReIDModel`] is built, loaded and saved. A part of it, in a file of its own."""

    # ---- building ------------------------------------------------------------------------------------------------

    @classmethod
    def from_mllm_pretrained(
        cls, name_or_path: str | os.PathLike, *, dtype=torch.float32, revision=None, quantization_config=None, **fields
    ):
        """A new model around the weights of a native LLaVA; only the ReID head is new.

        quantization_config: a `BitsAndBytesConfig`, for the language model alone. `fields` are those of
        [`MllmReIDConfig`]. Raises ValueError where the checkpoint is not a LLaVA.
        """
        options = {"dtype": dtype, "revision": revision}
        if quantization_config is not None:
            options["quantization_config"] = for_language_model(quantization_config)
        mllm = AutoModelForImageTextToText.from_pretrained(name_or_path, **options)
        return cls.from_mllm(mllm, **fields)

    @classmethod
    def from_mllm(cls, mllm: PreTrainedModel, **config_fields):
        """A new model around a LLaVA that is already in memory; the LLaVA is not copied."""
        if mllm.config.model_type != "llava":
            raise ValueError(f"{mllm.config.model_type!r} is not a LLaVA; give a checkpoint of model_type 'llava'")
        return cls._around(mllm, cls.config_class(mllm_config=plain_config(mllm), **config_fields))

    @classmethod
    def _around(cls, mllm: PreTrainedModel, config):
        # On the meta device: a second full-size LLaVA is never made.
        with torch.device("meta"):
            model = cls(config)
        model.mllm = mllm
        model.reid_head.to_empty(device=mllm.device)
        model.reid_head.float().apply(model._init_weights)
        if getattr(mllm, "is_quantized", False):
            check_quantized(model)
        if mllm.generation_config is not None:
            model.generation_config = copy.deepcopy(mllm.generation_config)
        return model

    # ---- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_path, *args, config=None, is_trainable: bool = False, **kwargs):
        """Full and thin checkpoints alike, by folder or by name.

        Beside what transformers takes (`dtype`, `device_map`, `quantization_config`, ...): is_trainable, for a thin
        checkpoint whose training goes on: its own weights keep float32 and are trained, those of the backbone
        are frozen. A `revision` is the checkpoint's; the backbone has its own. Raises OSError where something is not
        found, ValueError for broken or pickled weights, weights that are missing, and a backbone that is another one.
        """
        if name_or_path is None:
            return super().from_pretrained(name_or_path, *args, config=config, **kwargs)
        hub = {key: kwargs[key] for key in HUB if kwargs.get(key) is not None}
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = for_language_model(kwargs["quantization_config"])
        if config is None:
            config = cls.config_class.from_pretrained(name_or_path, **hub)
        if config.backbone is not None:
            return cls._from_thin(name_or_path, config, hub, is_trainable, kwargs)
        wanted_info = kwargs.pop("output_loading_info", False)
        with readable(name_or_path, hub):
            model, info = super().from_pretrained(
                name_or_path, *args, config=config, **{"use_safetensors": True, **kwargs}, output_loading_info=True
            )
        # A head may be new where the configuration was changed on purpose; anything else would be random and silent.
        lost = sorted(name for name in info["missing_keys"] if not name.startswith("reid_head."))
        if lost:
            raise ValueError(f"{name_or_path}: {len(lost)} weights are missing, {lost[0]} first: get it again")
        if getattr(model, "is_quantized", False):
            check_quantized(model)
        return (model, info) if wanted_info else model

    @classmethod
    def _from_thin(cls, name_or_path, config, hub: dict, is_trainable: bool, kwargs: dict):
        options = {key: kwargs[key] for key in BACKBONE if kwargs.get(key) is not None}
        config = copy.deepcopy(config)
        options.setdefault("dtype", config.dtype or "auto")
        if isinstance(options.get("device_map"), dict):
            # The map is of our names; the backbone has its own.
            of_mllm = {key.removeprefix("mllm").removeprefix("."): at for key, at in options["device_map"].items()}
            options["device_map"] = {key: at for key, at in of_mllm.items() if not key.startswith("reid_head")}
        mllm = load_backbone(cls, config, options, name_or_path)
        config.mllm_config = plain_config(mllm)
        model = cls._around(mllm, config)
        own = read_weights(name_or_path, hub)
        settings, adapter = (None, {}) if config.adapter is None else read_adapter(name_or_path, config.adapter, hub)
        if settings is not None:
            inject_adapter(mllm, settings)
        model.requires_grad_(False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if is_trainable and (name in own or ".lora_" in name):
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
                elif ".lora_" in name:
                    parameter.data = parameter.data.to(model.dtype)
        model.fill_weights(own, adapter, where=str(name_or_path))
        return model.train(is_trainable)

    def own_weights(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What a checkpoint of this model holds besides a LoRA: all, or in a thin one the trained modules and heads."""
        state = self.state_dict() if state_dict is None else state_dict
        if self.config.backbone is None:
            return state
        modules = (*(self.config.own_modules or ()), "reid_head")
        return {name: weight for name, weight in state.items() if name.startswith(tuple(f"{m}." for m in modules))}

    @torch.no_grad()
    def fill_weights(self, own: dict[str, Tensor], adapter: dict[str, Tensor], *, where: str) -> None:
        """Copies a checkpoint's weights into the model, each of them; number formats stay the model's.

        Raises ValueError naming a weight that is missing, unknown or of another size, before anything is copied.
        """
        tied = set(getattr(self, "all_tied_weights_keys", None) or ())
        pairs: tuple[tuple[dict, dict, set], ...] = (
            (self.own_weights(), own, tied),
            (adapter_weights(self.mllm), adapter, set()),
        )
        for target, given, optional in pairs:
            for name in sorted(target.keys() ^ given.keys()):
                if name not in optional:
                    problem = "is missing" if name in target else "is not part of this model"
                    raise ValueError(f"{where}: the weight {name} {problem}: it is another model's or not whole")
            for name, weight in given.items():
                if weight.shape != target[name].shape:
                    raise ValueError(
                        f"{where}: the weight {name} is {tuple(weight.shape)} and the model's "
                        f"{tuple(target[name].shape)}: it is another model's"
                    )
        for target, given, _ in pairs:
            for name, weight in given.items():
                target[name].copy_(weight)

    def load_weights(self, folder: str | os.PathLike) -> None:
        """Weights of a checkpoint of this very model, as a resumed training needs them. Raises as `fill_weights`."""
        adapter = read_adapter(folder, self.config.adapter, {})[1] if self.config.adapter else {}
        self.fill_weights(read_weights(folder, {}), adapter, where=str(folder))

    # ---- saving --------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory, *args, state_dict=None, save_original_format: bool = False, **kwargs):
        """As in transformers, under the names the model has now; thin where the configuration names a backbone.

        The legacy names that LLaVA is saved under would be left unread, with a mere warning, by a Trainer's resume.
        Where the LLaVA came from a folder, a full checkpoint does not tell its path: what is saved may be published.
        """
        self.config.mllm_config._name_or_path = ""
        self.config.custom_pipelines = person_reid_entry()
        thin, given = self.config.backbone is not None, state_dict
        if thin or state_dict is not None:
            state_dict = self.own_weights(state_dict)
        super().save_pretrained(
            save_directory, *args, state_dict=state_dict, save_original_format=save_original_format, **kwargs
        )
        if thin and self.config.adapter and kwargs.get("is_main_process", True):
            folder = os.path.join(save_directory, self.config.adapter)
            weights = adapter_weights(self.mllm) if given is None else adapter_of(given)
            save_adapter(self.mllm, folder, weights, self.config.backbone, self.config.backbone_revision)

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs) -> str:
        """As in transformers, but private where not said otherwise, and without the ID classifier."""
        if self.config.backbone is not None and os.path.isdir(self.config.backbone):
            raise ValueError(
                f"the backbone {self.config.backbone} is a folder, which others do not have: name the backbone on the "
                "Hub, or merge_and_unload() first"
            )
        with self.without_classifier():
            return super().push_to_hub(repo_id, private=private, **kwargs)

    @contextlib.contextmanager
    def without_classifier(self) -> Iterator[None]:
        """For the time of a publication the ID classifiers are gone: their rows are templates of real people."""
        count, digest = self.config.num_identities, self.config.identities_digest
        classifiers = {name: head.classifier for name, head in self.reid_head.items()}
        self.config.num_identities, self.config.identities_digest = 0, None
        for head in self.reid_head.values():
            head.classifier = None
        try:
            yield
        finally:
            self.config.num_identities, self.config.identities_digest = count, digest
            for name, classifier in classifiers.items():
                self.reid_head[name].classifier = classifier

    def merge_and_unload(self):
        """Makes a thin model full: the LoRA goes into the weights, the backbone is part of the model. Returns it."""
        merge_adapter(self.mllm)
        self.config.backbone = self.config.backbone_revision = self.config.backbone_probe = None
        self.config.own_modules = self.config.adapter = None
        return self


# ---- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def readable(name_or_path, hub: dict) -> Iterator[None]:
    """Turns what a broken or a pickled file raises into one line that says so."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: a .safetensors file is cut off or broken ({error}): get it again") from error
    except OSError as error:
        name, known = os.fspath(name_or_path), ("revision", "token", "cache_dir", "local_files_only")
        pickle = "pytorch_model.bin"
        if os.path.isdir(name):
            found = os.path.isfile(os.path.join(name, pickle))
        else:
            found = has_file(name, pickle, **{key: value for key, value in hub.items() if key in known})
        if not found:
            raise
        raise ValueError(
            f"{name}: {pickle} is a pickle, which can run code when it is read: not loaded; convert it with "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
        ) from error


def read_weights(name_or_path, hub: dict) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the files that its index names."""
    from safetensors.torch import load_file

    with readable(name_or_path, hub):
        optional = {**hub, "_raise_exceptions_for_missing_entries": False}
        index = cached_file(name_or_path, INDEX, **optional)
        files = [FULL_WEIGHTS]
        if index is not None:
            with open(index, encoding="utf-8") as file:
                files = sorted(set(json.load(file)["weight_map"].values()))
        weights: dict[str, Tensor] = {}
        for name in files:
            weights |= load_file(cached_file(name_or_path, name, **hub))
    return weights


def read_adapter(name_or_path, folder: str, hub: dict) -> tuple[dict, dict[str, Tensor]]:
    """(the fields of `LoraConfig`, the weights under PEFT's names) of the adapter in a checkpoint's sub-folder."""
    from safetensors.torch import load_file

    with readable(name_or_path, hub):
        with open(cached_file(name_or_path, f"{folder}/{SETTINGS}", **hub), encoding="utf-8") as file:
            settings = json.load(file)
        weights = load_file(cached_file(name_or_path, f"{folder}/{WEIGHTS}", **hub))
    kept = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias")
    return {key: settings[key] for key in kept if key in settings}, weights


def plain_config(mllm: PreTrainedModel):
    """The LLaVA's configuration; of a quantised one a copy that does not say so, for what is saved is not quantised."""
    config = mllm.config
    if getattr(config, "quantization_config", None) is not None:
        config = copy.deepcopy(config)
        del config.quantization_config
    return config


# ---- backbone --------------------------------------------------------------------------------------------------------


def probe(mllm: nn.Module) -> list[float]:
    """A few numbers of frozen weights, by which a backbone is known again in any number format.

    Eight of the token embeddings and eight of the last norm, at equal steps; neither is ever trained in a thin model.
    """
    language_model = mllm.model.language_model
    numbers = []
    for weight in (mllm.get_input_embeddings().weight, language_model.norm.weight):
        flat = weight.detach().flatten()
        at = torch.linspace(0, flat.numel() - 1, 8, device=flat.device, dtype=torch.float64).round().long()
        numbers += [float(f"{value:.6g}") for value in flat[at].float().tolist()]
    return numbers


def load_backbone(cls, config, options: dict, of) -> PreTrainedModel:
    """The LLaVA that a thin checkpoint was trained on: a native one, or the one inside a full checkpoint of ours.

    Raises OSError where it is not found, ValueError where it is of another size or has other weights.
    """
    name, revision = config.backbone, config.backbone_revision
    said = f"{of}: its backbone {name}" + (f" at {revision}" if revision else "")
    hub = {key: options[key] for key in ("cache_dir", "local_files_only", "token") if key in options}
    try:
        ours = (
            PreTrainedConfig.get_config_dict(name, revision=revision, **hub)[0].get("model_type") == config.model_type
        )
        inner = (cls.config_class if ours else AutoConfig).from_pretrained(name, revision=revision, **hub)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{said} cannot be found ({reason}): put it there, or get a full checkpoint") from error
    inner = inner.mllm_config if ours else inner
    for part in ("text_config", "vision_config"):
        for field in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "patch_size"):
            there, here = (getattr(getattr(c, part, None), field, None) for c in (inner, config.mllm_config))
            if there != here:
                raise ValueError(
                    f"{said} is of another size: {part}.{field} is {there}, not {here}: give the right one"
                )
    if ours:
        mllm = cls.from_pretrained(name, revision=revision, **options).mllm
    else:
        mllm = AutoModelForImageTextToText.from_pretrained(name, revision=revision, **options)
    expected, got = torch.tensor(config.backbone_probe), torch.tensor(probe(mllm))
    if not torch.allclose(got, expected, rtol=0.01, atol=1e-6):
        raise ValueError(f"{said} has other weights than the one that was trained on: give that one, in its revision")
    return mllm
