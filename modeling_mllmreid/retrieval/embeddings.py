"""Embeddings on disk: a folder with `embeddings.safetensors` (features) and `embeddings.json` (names, metadata)."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..utils.errors import UserError
from ..utils.json_files import parse_json, read_file
from ..utils.outputs import atomic_file, check_output, new_parents, only_writer
from ..utils.report_formats import EmbeddingsFile

FEATURES_FILE, METADATA_FILE = "embeddings.safetensors", "embeddings.json"
DIGEST_KEY = "facts_sha256"  # part of the file format
REMEDY = "embed the images again"
# Python stores bytes of a file name that are not UTF-8 as surrogates. Control characters do not print as one line.
SURROGATES, CONTROLS = re.compile("[\ud800-\udfff]"), re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Embeddings:
    """Features of N images, with the images' file names.

    Args:
        features (`np.ndarray`): (N, D) float32; row i is the feature of file_names[i].
        file_names (`list[str]`): N file names, relative to the embedded folder.
        metadata (`dict[str, Any]`): how the features were computed: model, image backend, image size and so on.
    """

    features: np.ndarray
    file_names: list[str]
    metadata: dict[str, Any]


def check_embeddings_output(folder: str | os.PathLike[str], *, inputs: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Checks, before long work, that embeddings can be written into a folder. Those of another run are replaced.

    Args:
        folder (`str` or `os.PathLike`): the folder for the embeddings.
        inputs (`Sequence[str | os.PathLike]`): files and folders that the run reads.

    Raises:
        UserError: if the folder is a link, a file, an input or inside one, contains files of these names that another
            program wrote, or cannot be written.
    """
    folder = Path(folder)
    if os.path.islink(folder):
        raise UserError(f"output {folder}: is a symbolic link: give the folder itself")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"output {folder}: is a file, not a folder: give another path")
    if os.path.isfile(folder / "config.json"):
        raise UserError(f"output {folder}: holds a model: give a folder of its own")
    check_output(folder / FEATURES_FILE, ours=_is_features, inputs=inputs)
    check_output(folder / METADATA_FILE, inputs=inputs)
    for source in map(Path, inputs):
        if os.path.isdir(source) and folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"output {folder}: lies inside {source}, which is read: give another path")


def save_embeddings(
    folder: str | os.PathLike[str], features: np.ndarray, file_names: Sequence[str], metadata: dict[str, Any]
) -> None:
    """Writes embeddings into a folder, and replaces those that are already there.

    Both files are written under temporary names and renamed, by one writer at a time. The features file stores the
    digest of the JSON file, so `load_embeddings` detects a crash between the two renames.

    Args:
        folder (`str` or `os.PathLike`): the folder to write; it is created if it is missing.
        features (`np.ndarray`): (N, D) features; they are stored as float32.
        file_names (`Sequence[str]`): N file names, relative to the embedded folder.
        metadata (`dict[str, Any]`): how the features were computed; anything that JSON can store.

    Returns:
        Nothing.

    Raises:
        UserError: if the counts differ, a file name is not allowed (see `load_embeddings`), another process writes the
            folder, or the disk is full or read-only.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from modeling_mllmreid import load_embeddings, save_embeddings
        >>> features = np.eye(2, 4, dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_embeddings(folder, features, ["a.jpg", "b.jpg"], metadata={"model": "my-model"})
        ...     load_embeddings(folder).file_names
        ['a.jpg', 'b.jpg']
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) != len(file_names):
        raise UserError(
            f"{folder}: features of shape {features.shape} for {len(file_names)} file names: give one row per image"
        )
    _check_names(file_names, str(folder))
    text = json.dumps({"metadata": metadata, "file_names": list(file_names)}, ensure_ascii=False, indent=1)
    folder = Path(folder)
    with new_parents(folder / METADATA_FILE), only_writer(folder, work="embed"):
        for name in (FEATURES_FILE, METADATA_FILE):  # left by killed writers: this process is the only writer now
            for leftover in folder.glob(f".{name}.*.part"):
                leftover.unlink()
        with atomic_file(folder / FEATURES_FILE) as features_file, atomic_file(folder / METADATA_FILE) as metadata_file:
            content = text.encode()
            save_file({"features": features}, features_file, metadata={DIGEST_KEY: _digest(content)})
            metadata_file.write_bytes(content)


def stored_model(folder: str | os.PathLike[str]) -> str | None:
    """Returns the model whose embeddings are in a folder, without reading them; None if it cannot be read."""
    path = Path(folder) / METADATA_FILE
    try:
        content = parse_json(read_file(path, remedy=REMEDY), EmbeddingsFile, where=str(path), remedy=REMEDY)
    except UserError:
        return None
    model = content.metadata.get("model")
    return model if isinstance(model, str) else None


def load_embeddings(folder: str | os.PathLike[str]) -> Embeddings:
    """Reads embeddings from a folder that `save_embeddings` wrote.

    Args:
        folder (`str` or `os.PathLike`): the folder of `embeddings.safetensors` and `embeddings.json`.

    Returns:
        `Embeddings`: `features` (N, D) float32, `file_names` (N) and `metadata`.

    Raises:
        UserError: if a file is missing, unreadable or from another program, the two files do not belong together,
            features are not finite, or a file name comes twice, leaves the embedded folder or has control characters.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from modeling_mllmreid import load_embeddings, save_embeddings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_embeddings(folder, np.eye(2, 4), ["a.jpg", "b.jpg"], metadata={"model": "my-model"})
        ...     embeddings = load_embeddings(folder)
        >>> embeddings.features.shape, embeddings.metadata
        ((2, 4), {'model': 'my-model'})
    """
    folder = Path(folder)
    for name in (FEATURES_FILE, METADATA_FILE):
        if not os.path.isfile(folder / name):
            raise UserError(f"{folder}: holds no {name}: give a folder that the embed command wrote")
    digest, features = _read_features(folder / FEATURES_FILE)
    text = read_file(folder / METADATA_FILE, remedy=REMEDY)
    if digest != _digest(text):
        raise UserError(f"{folder}: {METADATA_FILE} does not belong to {FEATURES_FILE}: write the folder again")
    content = parse_json(text, EmbeddingsFile, where=str(folder / METADATA_FILE), remedy=REMEDY)
    if len(features) != len(content.file_names):
        raise UserError(
            f"{folder}: {len(features)} features for {len(content.file_names)} file_names of {METADATA_FILE}: {REMEDY}"
        )
    _check_names(content.file_names, str(folder / METADATA_FILE))
    return Embeddings(features, content.file_names, content.metadata)


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of the names and contents of a checkpoint's `*.safetensors`, or "" if there are none.

    Embeddings in the folder are no weights. Raises UserError for a file that cannot be read.
    """
    root = Path(folder)
    paths = sorted(path for pattern in ("*.safetensors", "adapter/*.safetensors") for path in root.glob(pattern))
    files = [path for path in paths if path.name != FEATURES_FILE]
    if not files:
        return ""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode())
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): restore the file") from error
    return digest.hexdigest()


def fault_of_name(name: str) -> str | None:
    """Returns what is wrong with a file name, in a few words; None if embeddings can store it."""
    if SURROGATES.search(name):
        return "a name that is not UTF-8"
    if CONTROLS.search(name):
        return "a name with control characters"
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "a name that leaves its folder"
    return None


def printable(name: str) -> str:
    """Returns a file name as one printable line, escaped if necessary."""
    return name if not (SURROGATES.search(name) or CONTROLS.search(name)) else ascii(name)


def _check_names(names: Sequence[str], where: str) -> None:
    """Raises UserError for a name that embeddings cannot store, and for one that comes twice."""
    for name in names:
        if fault := fault_of_name(name):
            raise UserError(f"{where}: file_names: {printable(name)}: {fault}: rename the file and {REMEDY}")
    if len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise UserError(f"{where}: file_names: {printable(name)} comes {count} times: {REMEDY}")


def _read_features(path: Path) -> tuple[str, np.ndarray]:
    """Reads the digest of the JSON file and the features. Raises UserError for a file that is no features file."""
    try:
        with safe_open(path, framework="numpy") as file:
            digest = (file.metadata() or {}).get(DIGEST_KEY)
            features = file.get_tensor("features") if digest is not None and "features" in file.keys() else None  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # TypeError: a type that NumPy does not have
        raise UserError(f"{path}: not readable ({' '.join(str(error).split())}): write the folder again") from error
    if digest is None or features is None:
        raise UserError(f"{path}: not written by the embed command: embed the images with it")
    if features.ndim != 2 or features.dtype != np.float32:
        raise UserError(f"{path}: features are {features.dtype} of shape {features.shape}, not float32 rows: {REMEDY}")
    sums = features.sum(1, dtype=np.float64)  # finite if all numbers are
    if not np.isfinite(sums).all():
        row = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise UserError(f"{path}: row {row} holds NaN or infinity: a diverged model, or a damaged file: {REMEDY}")
    if not (some := features.any(1)).all():
        raise UserError(f"{path}: row {int(some.argmin())} is all zeros, equally far from everybody: {REMEDY}")
    return digest, features


def _is_features(path: Path) -> bool:
    """Returns whether `save_embeddings` may replace a file: it wrote the file, or the file is empty."""
    if path.stat().st_size == 0:
        return True
    try:
        with safe_open(path, framework="numpy") as file:
            return DIGEST_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
