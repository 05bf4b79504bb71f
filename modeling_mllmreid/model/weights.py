"""Reading checkpoints: safetensors alone, inside their folder, each weight of the model and no other, each a number."""

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, has_file

CONFIG, FULL_WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What of a call says where files are, on the Hub or in a folder.
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Sides of matrices that the parts of a LLaVA have, by their configurations' names.
MATRICES = (
    ("hidden_size", "hidden_size"),
    ("hidden_size", "intermediate_size"),
    ("hidden_size", "vocab_size"),
    ("hidden_size", "num_attention_heads", "head_dim"),
    ("hidden_size", "num_key_value_heads", "head_dim"),
    ("hidden_size", "num_channels", "patch_size", "patch_size"),
)
# The name of one file of a sharded checkpoint: no folder, so that it stays in the checkpoint's.
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)


@contextlib.contextmanager
def readable(name_or_path, hub: dict, pickles: Iterable[str] = PICKLES) -> Iterator[None]:
    """Turns what a broken or a pickled file raises into one line that says so. pickles: their names, if there."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: a .safetensors file is cut off or broken ({error}): get it again") from error
    except OSError as error:
        name, known = os.fspath(name_or_path), ("revision", "token", "cache_dir", "local_files_only")
        options = {key: value for key, value in hub.items() if key in known}

        def held(file: str) -> bool:
            return os.path.isfile(os.path.join(name, file)) if os.path.isdir(name) else has_file(name, file, **options)

        pickle = next(filter(held, pickles), None)
        if pickle is None:
            raise
        raise ValueError(
            f"{name}: {pickle} is a pickle, which can run code when it is read: not loaded; convert it with "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
        ) from error


def read_fields(name_or_path, file: str, hub: dict, *, required: bool = False) -> dict | None:
    """The object in a JSON file of a checkpoint, None where there is no such file.

    A path of a config.json itself stands for its checkpoint, of which there may be nothing else. Raises ValueError
    naming a file that holds anything else, OSError for one that is required and missing.
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


def read_config(kind: type, name_or_path, hub: dict, **more):
    """`kind.from_pretrained` of a checkpoint's config.json, a configuration class of ours or `AutoConfig`.

    Raises OSError where there is none, ValueError for one that says what no configuration may.
    """
    fields = read_fields(name_or_path, CONFIG, hub, required=True) or {}
    wanted = getattr(kind, "model_type", None)
    if wanted and fields.get("model_type", wanted) != wanted:
        raise ValueError(f"{name_or_path}: {CONFIG}: model_type is {fields['model_type']!r}; it must be {wanted!r}")
    check_fields(fields, f"{name_or_path}: {CONFIG}")
    try:
        return kind.from_pretrained(name_or_path, **hub, **more)
    except OSError:
        raise
    except Exception as error:  # transformers sets every field that it finds, of any type, and raises what follows
        raise ValueError(f"{name_or_path}: {CONFIG}: {' '.join(str(error).split())[:300]}") from error


def native_config(name_or_path, hub: dict) -> PreTrainedConfig:
    """The configuration of a native LLaVA; ValueError for that of another kind of model."""
    config = read_config(AutoConfig, name_or_path, hub, trust_remote_code=False)
    if config.model_type != "llava":
        raise ValueError(f"{config.model_type!r} is not a LLaVA; give a checkpoint of model_type 'llava'")
    if type(config.image_token_id) is not int or config.image_token_id < 0:
        token = repr(config.image_token_id)[:60]
        raise ValueError(f"{name_or_path}: {CONFIG}: image_token_index is {token}; give the image token's id")
    return config


@contextlib.contextmanager
def owner_only() -> Iterator[None]:
    """Within the block new files and folders are their owner's alone: weights hold templates of people."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def check_fields(fields: dict, where: str) -> None:
    """Raises ValueError for a field, at any depth, that would crash transformers or have it fetch foreign code."""
    for key, value in fields.items():
        if key in ("dtype", "torch_dtype"):
            fits = value is None or isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)
        elif key in ("quantization_config", "id2label", "label2id"):
            fits = isinstance(value, (dict, type(None)))
        elif key == "num_labels":
            fits = type(value) is int and 0 <= value < 1_000_000
        elif key.endswith("attn_implementation"):
            # A name with a slash is a kernel on the Hub.
            fits = value is None or isinstance(value, str) and "/" not in value
        else:
            fits = key != "sub_configs" and not callable(getattr(PreTrainedConfig, key, None))
        if not fits:
            raise ValueError(f"{where}: {key} is {repr(value)[:60]}, which no configuration says: remove it")
        if isinstance(value, dict):
            check_fields(value, f"{where}: {key}")


def check_files(name_or_path, hub: dict) -> None:
    """Refuses a checkpoint whose own files would have others read than its safetensors. Raises ValueError."""
    fields = read_fields(name_or_path, CONFIG, hub) or {}
    if fields.get("transformers_weights") is not None:
        raise ValueError(f"{name_or_path}: transformers_weights in {CONFIG} names a file of weights: remove it")
    if read_fields(name_or_path, "adapter_config.json", hub) is not None:
        raise ValueError(
            f"{name_or_path}: adapter_config.json says that a LoRA of PEFT belongs to it: merge it into the weights, "
            "or remove the file"
        )
    shards_of(name_or_path, hub)


def shards_of(name_or_path, hub: dict) -> list[str]:
    """The files that a checkpoint's index names; none where it has no index. Raises ValueError for foreign names."""
    fields = read_fields(name_or_path, INDEX, hub)
    if fields is None:
        return []
    files = fields.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{name_or_path}: weight_map in {INDEX} is not a map from weights to files: get it again")
    for weight, file in files.items():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise ValueError(f"{name_or_path}: weight_map in {INDEX} has {file!r} for {weight}: not a file beside it")
    return sorted(set(files.values()))


def read_weights(name_or_path, hub: dict) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the files that its index names."""
    from safetensors.torch import load_file

    with readable(name_or_path, hub):
        # As transformers: one file, where there is one, before an index.
        whole = cached_file(name_or_path, FULL_WEIGHTS, **{**hub, "_raise_exceptions_for_missing_entries": False})
        weights: dict[str, Tensor] = {}
        for name in ([] if whole else shards_of(name_or_path, hub)) or [FULL_WEIGHTS]:
            weights |= load_file(cached_file(name_or_path, name, **hub))
    for name, weight in weights.items():
        check_kind(name_or_path, name, weight.dim(), weight.is_floating_point())
    return weights


def check_kind(where, name: str, dimensions: int, is_float: bool) -> None:
    """Raises ValueError for a matrix or vector of whole numbers, which is loaded as weights cut to them.

    Counters have no dimension, and older CLIPs store the places of their patches.
    """
    if dimensions and not is_float and not name.endswith("position_ids"):
        raise ValueError(f"{where}: {name} holds whole numbers, which no weight does: get it again")


def check_stored(config: PreTrainedConfig, name_or_path, hub: dict, *, finite: bool) -> None:
    """`check_kind` of every weight of a checkpoint that is not stored in 4 or 8 bits, and `check_finite` if asked."""
    from safetensors import safe_open

    if getattr(getattr(config, "mllm_config", config), "quantization_config", None) is not None:
        return
    whole = cached_file(name_or_path, FULL_WEIGHTS, **{**hub, "_raise_exceptions_for_missing_entries": False})
    for file in ([] if whole else shards_of(name_or_path, hub)) or [FULL_WEIGHTS]:
        with safe_open(cached_file(name_or_path, file, **hub), "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (no mapping)
                weight = weights.get_slice(name)
                check_kind(name_or_path, name, len(weight.get_shape()), weight.get_dtype().startswith(("F", "BF")))
                if finite:
                    check_finite({name: weights.get_tensor(name)}, name_or_path)


def check_sizes(config: PreTrainedConfig, name_or_path, hub: dict) -> None:
    """Raises ValueError where config.json says a model that is larger than the weights in its folder.

    transformers takes the memory for it before it finds that they do not fit. Of a checkpoint on the Hub nothing is
    known before it is downloaded.
    """
    from safetensors import safe_open

    if not os.path.isdir(name_or_path):
        return
    whole = cached_file(name_or_path, FULL_WEIGHTS, **{**hub, "_raise_exceptions_for_missing_entries": False})
    largest = count = 0
    for file in ([] if whole else shards_of(name_or_path, hub)) or [FULL_WEIGHTS]:
        with safe_open(cached_file(name_or_path, file, **hub), "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (no mapping)
                largest = max(largest, math.prod(weights.get_slice(name).get_shape()))
                count += 1
    # In 4 bits a number holds two weights.
    largest *= 2

    def check(of, fields: tuple[str, ...], most: int, numel: Callable[..., int] = lambda *sides: math.prod(sides)):
        found = [getattr(of, field, None) for field in fields]
        values = [value for value in found if isinstance(value, int)]
        if len(values) < len(fields):
            return
        said = ", ".join(f"{field} {value}" for field, value in zip(fields, values, strict=True))
        # A vision form may be all embedding.
        least = 0 if fields in (("num_identities",), ("num_hidden_layers",)) else 1
        if min(values) < least:
            raise ValueError(f"{name_or_path}: {CONFIG} says a model of no size ({said}): get it again")
        if numel(*values) > most:
            raise ValueError(f"{name_or_path}: {CONFIG} says a model larger than its weights ({said}): get it again")

    check(config, ("num_identities",), largest)
    llava = getattr(config, "mllm_config", config)
    for part in (getattr(llava, "text_config", None), getattr(llava, "vision_config", None)):
        check(part, ("num_hidden_layers",), count)
        for fields in MATRICES:
            check(part, fields, largest)
        patches = ("hidden_size", "image_size", "patch_size")
        check(part, patches, largest, lambda size, image, patch: size * (image // patch) ** 2)


def load_whole(
    load: Callable,
    name_or_path,
    hub: dict,
    options: dict,
    *,
    stored: PreTrainedConfig,
    new: Iterable[str] = (),
    left: Iterable[str] = (),
) -> tuple[PreTrainedModel, dict]:
    """(the model, transformers' loading info) of a `from_pretrained`, with every weight out of the checkpoint.

    hub: where the files are, out of `options`, all that the call is given. stored: its configuration. new, left:
    starts of the names of weights that may be initialised because the checkpoint has none, and that may be left in it
    unread.
    Raises ValueError for pickles and broken files, and naming a weight that is missing, unknown, of another size or
    not finite: transformers would start such a model with random weights, or read around the rest.
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
            model, info = load(name_or_path, **{"trust_remote_code": False, **options, **strict})
        except (OSError, ValueError, ImportError, SafetensorError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model is built of every setting that its files say
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{name_or_path}: cannot be loaded ({type(error).__name__}: {reason})") from error
        # Quantising turns NaN into a number on a GPU.
        check_stored(stored, name_or_path, hub, finite=options.get("quantization_config") is not None)
    new, left = tuple(new), tuple(left)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(new))
    if missing:
        raise ValueError(f"{name_or_path}: {len(missing)} weights are missing, {missing[0]} first: get it again")
    for name, there, here in sorted(info["mismatched_keys"]):
        raise another_size(name_or_path, name, there, here)
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(left))
    if unknown:
        raise unknown_weight(name_or_path, unknown[0])
    check_finite(model.state_dict(), name_or_path)
    return model, info


def another_size(where, name: str, there: Iterable[int], here: Iterable[int]) -> ValueError:
    """The error for a weight whose size is not the model's."""
    return ValueError(
        f"{where}: the weight {name} is {tuple(there)} and the model's {tuple(here)}: it is another model's"
    )


def unknown_weight(where, name: str) -> ValueError:
    """The error for a weight that the configuration does not say."""
    return ValueError(f"{where}: the weight {name} is not part of this model: it is another model's or not whole")


@torch.no_grad()
def check_finite(weights: Mapping[str, Tensor], where) -> None:
    """Raises ValueError naming a weight with NaN or infinity, or a running variance below 0.

    What is not in memory (offloaded, partitioned) and what is held in 8 bits or fewer is not looked at.
    """
    for name, weight in weights.items():
        if not weight.is_floating_point() or weight.element_size() < 2 or not weight.numel() or weight.is_meta:
            continue
        # Both ends in one pass, without a copy; NaN makes both NaN.
        low, high = (float(end) for end in torch.aminmax(weight))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise ValueError(f"{where}: the weight {name} is not finite in {weight.dtype}: get it again, or train anew")
        if low < 0 and name.endswith("running_var"):
            raise ValueError(f"{where}: the weight {name} is {low:g}, below 0: get it again, or train anew")
