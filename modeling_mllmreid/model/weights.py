"""Reads checkpoints safely: safetensors only, within their folder, with exactly the model's weights, all finite."""

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, has_file

from .backbones import check_family
from .fields import check_fields

# A folder or a name on the Hub, and the arguments of `from_pretrained` that locate its files.
Source: TypeAlias = str | os.PathLike[str]
Hub: TypeAlias = dict[str, Any]

CONFIG, FULL_WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Arguments of `from_pretrained` that locate files, on the Hub or in a folder.
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Sides of matrices in the modules of a multimodal LLM, as fields of their configurations. Heads divide such a side.
MATRICES = (
    ("num_attention_heads",),
    ("num_key_value_heads",),
    ("hidden_size", "hidden_size"),
    ("hidden_size", "intermediate_size"),
    ("hidden_size", "num_attention_heads", "head_dim"),
    ("hidden_size", "num_key_value_heads", "head_dim"),
    ("hidden_size", "num_channels", "patch_size", "patch_size"),
)
# A file name of a sharded checkpoint. It has no folder, so the file is in the checkpoint's own.
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
# transformers replaces methods of its classes while it loads a model. Two threads that load at once leave them
# replaced: no model of the process ties its weights any more.
_loading = threading.RLock()


@contextlib.contextmanager
def readable(name_or_path: Source, hub: Hub, pickles: Iterable[str] = PICKLES) -> Iterator[None]:
    """Converts the errors of broken files, and of files that exist only as a pickle, to a ValueError in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: a .safetensors file is cut off or broken ({error}): get it again") from error
    except OSError as error:
        name, known = os.fspath(name_or_path), ("revision", "token", "cache_dir", "local_files_only")
        options = {key: value for key, value in hub.items() if key in known}

        def exists(file: str) -> bool:
            return os.path.isfile(os.path.join(name, file)) if os.path.isdir(name) else has_file(name, file, **options)

        pickle = next(filter(exists, pickles), None)
        if pickle is None:
            raise
        raise ValueError(
            f"{name}: {pickle} is a pickle, which can run code when it is read: not loaded; convert it with "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
        ) from error


def read_fields(name_or_path: Source, file: str, hub: Hub, *, required: bool = False) -> dict[str, Any] | None:
    """Reads a JSON file of a checkpoint.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A checkpoint's folder, its name on the Hub, or the path of its config.json, which may be its only file.
        file (`str`):
            Name of the JSON file.
        hub (`dict`):
            Arguments of `from_pretrained` that locate files (`HUB`).
        required (`bool`, *optional*, defaults to `False`):
            Whether a missing file is an error.

    Returns:
        `dict` or `None`: the object in the file, or None if there is no file.

    Raises:
        OSError: for a required file that is missing.
        ValueError: for a file that holds no JSON object.
    """
    if file == CONFIG and os.path.isfile(name_or_path):
        path = name_or_path
    else:
        path = cached_file(name_or_path, file, **{**hub, "_raise_exceptions_for_missing_entries": required})
    if path is None:
        if required:
            raise OSError(f"{name_or_path}: has no {file}: give a checkpoint's folder or a name on the Hub")
        return None
    try:
        with open(path, encoding="utf-8") as opened:
            fields = json.load(opened)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name_or_path}: {file} is not JSON ({error}): get it again") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name_or_path}: {file} holds a {type(fields).__name__}, not an object: get it again")
    return fields


def read_config(config_class: Any, name_or_path: Source, hub: Hub, **options: Any) -> Any:
    """Reads and checks a checkpoint's config.json.

    Args:
        config_class (`type`):
            A configuration class of this package or `AutoConfig`.
        name_or_path (`str` or `os.PathLike`):
            As in `read_fields`.
        hub (`dict`):
            Arguments of `from_pretrained` that locate files (`HUB`).
        **options:
            Further arguments of `config_class.from_pretrained`.

    Returns:
        `PreTrainedConfig`

    Raises:
        OSError: if there is no config.json.
        ValueError: for another model type, and for fields that no configuration may have.
    """
    fields = read_fields(name_or_path, CONFIG, hub, required=True) or {}
    expected = getattr(config_class, "model_type", None)
    if expected and fields.get("model_type", expected) != expected:
        raise ValueError(f"{name_or_path}: {CONFIG}: model_type is {fields['model_type']!r}; it must be {expected!r}")
    check_fields(fields, f"{name_or_path}: {CONFIG}")
    try:
        return config_class.from_pretrained(name_or_path, **hub, **options)
    except OSError:
        raise
    except Exception as error:  # transformers accepts fields of any type and fails later in any way
        raise ValueError(f"{name_or_path}: {CONFIG}: {' '.join(str(error).split())[:300]}") from error


def native_config(name_or_path: Source, hub: Hub) -> PreTrainedConfig:
    """Reads the configuration of a native multimodal LLM. Raises ValueError for a model of no known family."""
    config: PreTrainedConfig = read_config(AutoConfig, name_or_path, hub, trust_remote_code=False)
    check_family(config.model_type)
    if type(config.image_token_id) is not int or config.image_token_id < 0:
        token = repr(config.image_token_id)[:60]
        raise ValueError(f"{name_or_path}: {CONFIG}: image_token_index is {token}; give the image token's id")
    return config


@contextlib.contextmanager
def owner_only() -> Iterator[None]:
    """Makes new files and folders readable only by their owner, since weights can hold templates of people."""
    previous_mask = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(previous_mask)


def check_files(name_or_path: Source, hub: Hub) -> None:
    """Raises ValueError for a checkpoint whose files make transformers read anything but its safetensors."""
    fields = read_fields(name_or_path, CONFIG, hub) or {}
    if fields.get("transformers_weights") is not None:
        raise ValueError(f"{name_or_path}: transformers_weights in {CONFIG} names a file of weights: remove it")
    if read_fields(name_or_path, "adapter_config.json", hub) is not None:
        raise ValueError(
            f"{name_or_path}: adapter_config.json makes it a LoRA of PEFT: merge the LoRA into the weights, or remove "
            "the file"
        )
    shards = shard_files(name_or_path, hub)
    if os.path.isdir(name_or_path) and not os.path.isfile(os.path.join(name_or_path, FULL_WEIGHTS)):
        for file in shards:
            if not os.path.isfile(os.path.join(name_or_path, file)):
                raise ValueError(f"{name_or_path}: {file}, which {INDEX} names, is missing: get it again")


def shard_files(name_or_path: Source, hub: Hub) -> list[str]:
    """Returns the files in a checkpoint's index, or none without an index. Raises ValueError for files elsewhere."""
    fields = read_fields(name_or_path, INDEX, hub)
    if fields is None:
        return []
    files = fields.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{name_or_path}: weight_map in {INDEX} is not a map from weights to files: get it again")
    for weight, file in files.items():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise ValueError(f"{name_or_path}: weight_map in {INDEX} has {file!r} for {weight}: no file of its folder")
    return sorted(set(files.values()))


def weight_files(name_or_path: Source, hub: Hub) -> list[str]:
    """Returns the paths of a checkpoint's safetensors. Like transformers, it prefers one whole file to an index."""
    whole = cached_file(name_or_path, FULL_WEIGHTS, **{**hub, "_raise_exceptions_for_missing_entries": False})
    names = ([] if whole else shard_files(name_or_path, hub)) or [FULL_WEIGHTS]
    return [str(cached_file(name_or_path, name, **hub)) for name in names]


def read_weights(name_or_path: Source, hub: Hub) -> dict[str, Tensor]:
    """Reads all weights of a checkpoint. Raises ValueError for broken files, pickles and weights of whole numbers."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    with readable(name_or_path, hub):
        for path in weight_files(name_or_path, hub):
            weights |= load_file(path)
    for name, weight in weights.items():
        check_is_float(name_or_path, name, weight.dim(), weight.is_floating_point())
    return weights


def check_is_float(where: Source, name: str, dimensions: int, is_float: bool) -> None:
    """Raises ValueError for a matrix or vector of whole numbers, to which a save has rounded the weights.

    Counters have no dimension, and older CLIPs store the positions of their patches.
    """
    if dimensions and not is_float and not name.endswith("position_ids"):
        raise ValueError(f"{where}: {name} holds whole numbers, which no weight does: get it again")


def check_stored(config: PreTrainedConfig, name_or_path: Source, hub: Hub, *, finite: bool) -> None:
    """Checks that the stored weights are floats, and finite if asked. Checkpoints in 4 or 8 bits are not checked."""
    from safetensors import safe_open

    if getattr(getattr(config, "mllm_config", config), "quantization_config", None) is not None:
        return
    for path in weight_files(name_or_path, hub):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (no mapping)
                weight = weights.get_slice(name)
                check_is_float(name_or_path, name, len(weight.get_shape()), weight.get_dtype().startswith(("F", "BF")))
                if finite:
                    check_finite({name: weights.get_tensor(name)}, name_or_path)


def check_sizes(config: PreTrainedConfig, name_or_path: Source, hub: Hub) -> None:
    """Raises ValueError if config.json describes a larger model than the weights in its folder.

    transformers allocates the model before it finds that the weights do not fit. A checkpoint on the Hub is not
    checked, since its sizes are unknown before the download.
    """
    if not os.path.isdir(name_or_path):
        return
    count, largest = _count_and_largest(name_or_path, hub)

    def check(module: Any, fields: tuple[str, ...], limit: int, numel: Callable[..., int] = _product) -> None:
        values = [value for field in fields if isinstance(value := getattr(module, field, None), int)]
        if len(values) < len(fields):
            return
        sizes = ", ".join(f"{field} {value}" for field, value in zip(fields, values, strict=True))
        # The tower of a vision form may have no layers.
        least = 0 if fields in (("num_identities",), ("num_hidden_layers",)) else 1
        if min(values) < least:
            raise ValueError(f"{name_or_path}: {CONFIG} describes a model without weights ({sizes}): get it again")
        if numel(*values) > limit:
            raise ValueError(
                f"{name_or_path}: {CONFIG} describes a model larger than its weights ({sizes}): get it again"
            )

    check(config, ("num_identities",), largest)
    nested = getattr(config, "mllm_config", config)
    text, vision = (getattr(nested, f"{name}_config", None) for name in ("text", "vision"))
    for module in (text, vision):
        check(module, ("num_hidden_layers",), count)
        for fields in MATRICES:
            check(module, fields, largest)
    check(text, ("hidden_size", "vocab_size"), largest)
    if getattr(vision, "depths", None) is None:  # encoders of stages have no table of positions
        patches = ("hidden_size", "image_size", "patch_size")
        check(vision, patches, largest, lambda size, image, patch: size * (image // patch) ** 2)


def _product(*sides: int) -> int:
    return math.prod(sides)


def _count_and_largest(name_or_path: Source, hub: Hub) -> tuple[int, int]:
    """Returns the number of weights in the files of a checkpoint, and the size of the largest."""
    from safetensors import safe_open

    sizes = [0]
    for path in weight_files(name_or_path, hub):
        with safe_open(path, "pt") as weights:
            sizes += [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    # In 4 bits a number holds two weights.
    return len(sizes) - 1, 2 * max(sizes)


def load_whole(
    load: Callable[..., Any],
    name_or_path: Source,
    hub: Hub,
    options: dict[str, Any],
    *,
    stored: PreTrainedConfig,
    new: Iterable[str] = (),
    left: Iterable[str] = (),
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads a model and checks that every weight comes from the checkpoint.

    transformers initialises missing weights at random and ignores unknown ones, with no more than a warning.

    Args:
        load (`Callable`):
            A `from_pretrained`.
        name_or_path (`str` or `os.PathLike`):
            A checkpoint's folder or its name on the Hub.
        hub (`dict`):
            Those of `options` that locate files (`HUB`).
        options (`dict`):
            All arguments of the call.
        stored (`PreTrainedConfig`):
            The checkpoint's configuration.
        new (`Iterable[str]`, *optional*):
            Prefixes of weights that the checkpoint may lack; they are initialised.
        left (`Iterable[str]`, *optional*):
            Prefixes of weights of the checkpoint that the model may lack; they are ignored.

    Returns:
        `tuple[PreTrainedModel, dict]`: the model, and transformers' loading info.

    Raises:
        OSError: if files are missing.
        ValueError: for pickles and broken files, and for a weight that is missing, unknown, of another size or not
            finite.
    """
    from safetensors import SafetensorError

    if options.get("use_safetensors", True) is not True or options.get("gguf_file") is not None:
        raise ValueError(
            f"{name_or_path}: weights are read from safetensors alone: leave out use_safetensors, gguf_file"
        )
    strict = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with readable(name_or_path, hub):
        check_files(name_or_path, hub)
        check_sizes(stored, name_or_path, hub)
        try:
            with _loading:
                model, info = load(name_or_path, **{"trust_remote_code": False, **options, **strict})
        except (OSError, ValueError, ImportError, SafetensorError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # settings of foreign files fail in any way while the model is built
            reason = " ".join(str(error).split())[:200]
            reason = f"{type(error).__name__}: {reason}): get its config.json and its weights from one checkpoint"
            raise ValueError(f"{name_or_path}: cannot be loaded ({reason}") from error
        # On a GPU, quantisation turns NaN into a number.
        check_stored(stored, name_or_path, hub, finite=options.get("quantization_config") is not None)
    new, left = tuple(new), tuple(left)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(new))
    if missing:
        raise ValueError(f"{name_or_path}: {len(missing)} weights are missing, {missing[0]} first: get it again")
    for name, stored_size, model_size in sorted(info["mismatched_keys"]):
        raise size_error(name_or_path, name, stored_size, model_size)
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(left))
    if unknown:
        raise unknown_error(name_or_path, unknown[0])
    check_finite(model.state_dict(), name_or_path)
    return model, info


def size_error(where: Source, name: str, stored_size: Iterable[int], model_size: Iterable[int]) -> ValueError:
    """Returns the error for a weight of another size than the model's."""
    return ValueError(
        f"{where}: the weight {name} is {tuple(stored_size)} and the model's {tuple(model_size)}: it is another model's"
    )


def unknown_error(where: Source, name: str) -> ValueError:
    """Returns the error for a weight that the model does not have."""
    return ValueError(f"{where}: the weight {name} is not part of this model: it is another model's or not whole")


@torch.no_grad()
def check_finite(weights: Mapping[str, Tensor], where: Source) -> None:
    """Raises ValueError for a weight with NaN or infinity, and for a running variance below 0.

    Weights outside of memory (offloaded, partitioned) and weights of 8 bits or fewer are not checked.
    """
    for name, weight in weights.items():
        if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel() or weight.is_meta:
            continue
        # Minimum and maximum in one pass, without a copy; a NaN makes both NaN.
        low, high = (float(value) for value in torch.aminmax(weight))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError(f"{where}: the weight {name} is not finite in {weight.dtype}: download or train it again")
        if low < 0 and name.endswith("running_var"):
            raise ValueError(f"{where}: the weight {name} is {low:g}, below 0: download or train it again")
