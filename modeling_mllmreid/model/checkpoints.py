"""Checkpoints: full ones hold every weight, thin ones what was trained beside a backbone that they name."""

import contextlib
import copy
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

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
from .pipeline_mllmreid import person_reid_entry
from .publishing import PrivatePush, is_local
from .weights import (
    CONFIG,
    HUB,
    another_size,
    check_files,
    check_finite,
    load_whole,
    native_config,
    owner_only,
    read_config,
    read_fields,
    read_weights,
)

# What of a call belongs to the backbone as well; a revision or a sub-folder is the checkpoint's own.
BACKBONE = ("cache_dir", "force_download", "local_files_only", "token", "dtype", "quantization_config")
BACKBONE = (*BACKBONE, "device_map", "max_memory", "offload_folder", "attn_implementation")


class ReIDCheckpoints(PrivatePush):
    """How [`MllmReIDModel`] is built, loaded and saved. A part of it, in a file of its own."""

    # ---- building ------------------------------------------------------------------------------------------------

    @classmethod
    def from_mllm_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        dtype=torch.float32,
        revision=None,
        quantization_config=None,
        device_map=None,
        **fields,
    ):
        """A new model around the weights of a native LLaVA; only the ReID head is new.

        quantization_config: a `BitsAndBytesConfig`, for the language model alone. device_map: as transformers takes it,
        with the LLaVA's own names; quantised weights go to a GPU without it. `fields` are those of [`MllmReIDConfig`].
        Raises ValueError where the checkpoint is not a LLaVA, where a weight of it is missing, of
        another size or not finite, and for pickled or broken weights.
        """
        options = {"dtype": dtype, "revision": revision, "device_map": device_map}
        if quantization_config is not None:
            options["quantization_config"] = for_language_model(quantization_config)
        return cls.from_mllm(load_native(name_or_path, {"revision": revision}, options), **fields)

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
        if getattr(mllm.config, "quantization_config", None) is None:
            # One object, as in a model that is made from its configuration; the copy has another choice of attention.
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
        stored = read_config(cls.config_class, name_or_path, hub)
        fields = {name: kwargs.pop(name) for name in cls.config_class.__annotations__ if name in kwargs}
        config = stored if config is None else config
        if fields:
            config = cls.config_class.from_dict({**config.to_dict(), **fields})
        # A part of a head may be new where the configuration was changed on purpose, and left where it lost it.
        before, now = head_weight_names(stored), head_weight_names(config)
        changed = {"new": sorted(now - before), "left": sorted(before - now)}
        if config.backbone is not None:
            return cls._from_thin(name_or_path, config, hub, is_trainable, kwargs, changed)
        wanted_info = kwargs.pop("output_loading_info", False)

        def load(name, **options):
            return super(ReIDCheckpoints, cls).from_pretrained(name, *args, config=config, **options)

        model, info = load_whole(load, name_or_path, hub, kwargs, stored=stored, **changed)
        if getattr(model, "is_quantized", False):
            check_quantized(model)
        return (model, info) if wanted_info else model

    @classmethod
    def _from_thin(cls, name_or_path, config, hub: dict, is_trainable: bool, kwargs: dict, changed: dict):
        wanted_info = kwargs.pop("output_loading_info", False)
        options = {key: kwargs[key] for key in BACKBONE if kwargs.get(key) is not None}
        config = copy.deepcopy(config)
        options.setdefault("dtype", config.dtype or "auto")
        if isinstance(options.get("device_map"), dict):
            # The map is of our names; the backbone has its own.
            of_mllm = {key.removeprefix("mllm").removeprefix("."): at for key, at in options["device_map"].items()}
            options["device_map"] = {key: at for key, at in of_mllm.items() if not key.startswith("reid_head")}
        check_files(name_or_path, hub)
        if config.adapter is None and read_fields(name_or_path, f"{ADAPTER}/{SETTINGS}", hub) is not None:
            raise ValueError(f"{name_or_path}: {CONFIG} names no adapter, and there is one: get it again")
        mllm = load_backbone(cls, config, options, name_or_path)
        own = read_weights(name_or_path, hub)
        settings, adapter = (None, {}) if config.adapter is None else read_adapter(name_or_path, config.adapter, hub)
        for name, weight in own.items():
            # Before the model takes memory for as many rows as config.json says.
            if name.endswith(".classifier.weight") and weight.ndim and len(weight) < config.num_identities:
                raise another_size(name_or_path, name, weight.shape, (config.num_identities, *weight.shape[1:]))
        config.mllm_config = plain_config(mllm)
        model = cls._around(mllm, config)
        if settings is not None:
            try:
                inject_adapter(mllm, settings)
            except ValueError as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{name_or_path}: its LoRA is another model's ({reason})") from error
        model.requires_grad_(False)
        trained = tuple(f"{module}." for module in (*(config.own_modules or ()), "reid_head"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if is_trainable and (name.startswith(trained) or ".lora_" in name):
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
                elif ".lora_" in name:
                    parameter.data = parameter.data.to(model.dtype)
        missing = model.fill_weights(own, adapter, where=str(name_or_path), **changed)
        model.train(is_trainable)
        info = {"missing_keys": missing, "unexpected_keys": [], "mismatched_keys": [], "error_msgs": {}}
        return (model, info) if wanted_info else model

    def own_weights(self, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What a checkpoint of this model holds besides a LoRA: all, or in a thin one the trained modules and heads."""
        state = self.state_dict() if state_dict is None else state_dict
        if self.config.backbone is None:
            return state
        modules = (*(self.config.own_modules or ()), "reid_head")
        return {name: weight for name, weight in state.items() if name.startswith(tuple(f"{m}." for m in modules))}

    @torch.no_grad()
    def fill_weights(
        self, own: dict[str, Tensor], adapter: dict[str, Tensor], *, where: str, new=(), left=()
    ) -> list[str]:
        """Copies a checkpoint's weights into the model, each of them; number formats stay the model's.

        new, left: starts of the names of weights that may keep what they have, and of those that may be left unread.
        Returns the names of the former. Raises ValueError naming a weight that is missing, unknown, of another size or
        not finite, before anything is copied.
        """
        tied = set(getattr(self, "all_tied_weights_keys", None) or ())
        own = {name: weight for name, weight in own.items() if not name.startswith(tuple(left))}
        pairs: tuple[tuple[dict, dict, set], ...] = (
            (self.own_weights(), own, tied),
            (adapter_weights(self.mllm), adapter, set()),
        )
        kept = []
        for target, given, optional in pairs:
            for name in sorted(target.keys() ^ given.keys()):
                if name in target and name.startswith(tuple(new)):
                    kept.append(name)
                elif name not in optional:
                    problem = "is missing" if name in target else "is not part of this model"
                    raise ValueError(f"{where}: the weight {name} {problem}: it is another model's or not whole")
            for name, weight in given.items():
                if weight.shape != target[name].shape:
                    raise another_size(where, name, weight.shape, target[name].shape)
            check_finite(given, where)
        for target, given, _ in pairs:
            for name, weight in given.items():
                target[name].copy_(weight)
        return kept

    def load_weights(self, folder: str | os.PathLike) -> None:
        """Weights of a checkpoint of this very model, as a resumed training needs them. Raises as `fill_weights`."""
        adapter = read_adapter(folder, self.config.adapter, {})[1] if self.config.adapter else {}
        self.fill_weights(read_weights(folder, {}), adapter, where=str(folder))

    # ---- saving --------------------------------------------------------------------------------------------------

    @owner_only()
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
        if not kwargs.get("is_main_process", True):
            return
        if not (thin and self.config.adapter):
            # Of a checkpoint that was saved here before: it would be read as this one's.
            for stale in (SETTINGS, WEIGHTS):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(save_directory, ADAPTER, stale))
        else:
            folder = os.path.join(save_directory, self.config.adapter)
            weights = adapter_weights(self.mllm) if given is None else adapter_from_state_dict(given)
            save_adapter(self.mllm, folder, weights, self.config.backbone, self.config.backbone_revision)

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs) -> str:
        """As in [`PrivatePush`], and without the ID classifier. Raises ValueError for a backbone that is a folder."""
        if self.config.backbone is not None and is_local(self.config.backbone):
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
        self.config.backbone = self.config.backbone_revision = self.config.backbone_fingerprint = None
        self.config.own_modules = self.config.adapter = self.config.lora_targets = None
        return self


# ---- parts -----------------------------------------------------------------------------------------------------------


def head_weight_names(config) -> set[str]:
    """Starts of the names of the head weights that a configuration says a checkpoint has."""
    parts = {"bottleneck": config.bnneck, "classifier": config.num_identities}
    return {f"reid_head.{name}.{part}." for name in config.reid_heads for part, present in parts.items() if present}


def plain_config(mllm: PreTrainedModel):
    """A copy of the LLaVA's configuration, which does not say that it is quantised: what is saved is not."""
    config = copy.deepcopy(mllm.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    return config


# ---- backbone --------------------------------------------------------------------------------------------------------


def weights_fingerprint(mllm: nn.Module) -> list[float]:
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
    hub = hub if revision is None else {**hub, "revision": revision}
    if os.path.isabs(name) and not os.path.isdir(of):
        raise ValueError(f"{said} is a folder, which a checkpoint on the Hub cannot name: get a full checkpoint")
    try:
        ours = (read_fields(name, CONFIG, hub, required=True) or {}).get("model_type") == config.model_type
        inner = read_config(cls.config_class, name, hub) if ours else native_config(name, hub)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{said} cannot be found ({reason}): put it there, or get a full checkpoint") from error
    if ours and inner.backbone is not None:
        raise ValueError(f"{said} is a thin checkpoint itself, which names another one: get a full checkpoint")
    inner = inner.mllm_config if ours else inner
    for part in ("text_config", "vision_config"):
        for field in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "patch_size"):
            there, here = (getattr(getattr(c, part, None), field, None) for c in (inner, config.mllm_config))
            if there != here:
                raise ValueError(
                    f"{said} is of another size: {part}.{field} is {there}, not {here}: give the right one"
                )
    options = {**options, **hub}
    mllm = cls.from_pretrained(name, **options).mllm if ours else load_native(name, hub, options)
    expected, got = torch.tensor(config.backbone_fingerprint or []), torch.tensor(weights_fingerprint(mllm))
    if expected.shape != got.shape or not torch.allclose(got, expected, rtol=0.01, atol=1e-6):
        raise ValueError(f"{said} has other weights than the one that was trained on: give that one, in its revision")
    return mllm


def load_native(name_or_path, hub: dict, options: dict) -> PreTrainedModel:
    """A native LLaVA with every weight out of its checkpoint. hub: where it is; options: all that the call is given.

    Raises ValueError for another kind of model, and as `load_whole`; what its files hold besides is left.
    """
    hub = {key: value for key, value in hub.items() if value is not None}
    stored = native_config(name_or_path, hub)
    load = AutoModelForImageTextToText.from_pretrained
    options = {**options, "trust_remote_code": False}
    return load_whole(load, name_or_path, hub, options, stored=stored, left=[""])[0]
