"""Embeddings on disk: a folder with `embeddings.safetensors` and `embeddings.json` that belong together."""

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
from ..utils.formats import EmbeddingsFile
from ..utils.json_files import parse_json, read_file
from ..utils.outputs import atomic_file, check_output, new_parents, only_writer

FEATURES_FILE, METADATA_FILE = "embeddings.safetensors", "embeddings.json"
REMEDY = "embed the images again"
# How Python holds the bytes of a file name that are not UTF-8, and what would not print as one line.
SURROGATES, CONTROLS = re.compile("[\ud800-\udfff]"), re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Embeddings:
    """features: (N, D) float32, row i of file_names[i]; metadata: what made them (model, image backend...)."""

    features: np.ndarray
    file_names: list[str]
    metadata: dict[str, Any]


def check_embeddings_output(folder: str | os.PathLike[str], *, inputs: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Makes sure, before long work, that embeddings can be written into a folder, which may hold those of another run.

    inputs: files and folders that are read. Raises UserError for a symbolic link, a file, a folder that is read or lies
    in one, for files of these names that this program did not write, and for what cannot be written.
    """
    folder = Path(folder)
    if os.path.islink(folder):
        raise UserError(f"output {folder}: is a symbolic link: give the folder itself")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"output {folder}: is a file, not a folder: give another path")
    check_output(folder / FEATURES_FILE, ours=_is_features, inputs=inputs)
    check_output(folder / METADATA_FILE, inputs=inputs)
    for source in map(Path, inputs):
        if os.path.isdir(source) and folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"output {folder}: lies inside {source}, which is read: give another path")


def save_embeddings(
    folder: str | os.PathLike[str], features: np.ndarray, file_names: Sequence[str], metadata: dict[str, Any]
) -> None:
    """Writes features (N, D), as float32, with their N file names and JSON-able metadata; replaces what is there.

    Both files are written aside and renamed, one writer at a time, and the features carry the digest of the JSON: a
    crash between the renames is found at load. Raises UserError where the counts differ, for a name that no index may
    hold (`load_embeddings`), and where another writer or the disk is in the way.
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
        for name in (FEATURES_FILE, METADATA_FILE):  # of killed writers, as there is no other one now
            for left in folder.glob(f".{name}.*.part"):
                left.unlink()
        with atomic_file(folder / FEATURES_FILE) as features_file, atomic_file(folder / METADATA_FILE) as facts_file:
            content = text.encode()
            save_file({"features": features}, features_file, metadata={"facts_sha256": _digest(content)})
            facts_file.write_bytes(content)


def load_embeddings(folder: str | os.PathLike[str]) -> Embeddings:
    """Reads a folder of `save_embeddings`.

    Raises UserError where it is missing or foreign, its files do not agree or cannot be read, features are not finite,
    and for a file name that comes twice, leads out of the embedded folder, or cannot be printed in one line.
    """
    folder = Path(folder)
    for name in (FEATURES_FILE, METADATA_FILE):
        if not os.path.isfile(folder / name):
            raise UserError(f"{folder}: holds no {name}: give a folder written by the embed command")
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


def fault_of_name(name: str) -> str | None:
    """What is wrong with a file name that an index cannot hold, in a few words; None for a good one."""
    if SURROGATES.search(name):
        return "a name that is not UTF-8"
    if CONTROLS.search(name):
        return "a name with control characters"
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "a name that leaves its folder"
    return None


def printable(name: str) -> str:
    """A file name as one line that any terminal prints: as it is, or escaped."""
    return name if not (SURROGATES.search(name) or CONTROLS.search(name)) else ascii(name)


def _check_names(names: Sequence[str], where: str) -> None:
    """Raises UserError for a name that no index may hold, and for one that comes twice."""
    for name in names:
        if fault := fault_of_name(name):
            raise UserError(f"{where}: file_names: {printable(name)}: {fault}: rename the file and {REMEDY}")
    if len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise UserError(f"{where}: file_names: {printable(name)} comes {count} times: {REMEDY}")


def _read_features(path: Path) -> tuple[str, np.ndarray]:
    """The digest of the JSON that belongs to a features file, and the features. Raises UserError for any other file."""
    try:
        with safe_open(path, framework="numpy") as file:
            digest = (file.metadata() or {}).get("facts_sha256")
            features = file.get_tensor("features") if digest is not None and "features" in file.keys() else None  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # TypeError: numbers that NumPy does not have
        raise UserError(f"{path}: not readable ({' '.join(str(error).split())}): write the folder again") from error
    if digest is None or features is None:
        raise UserError(f"{path}: not written by the embed command: embed the images with it")
    if features.ndim != 2 or features.dtype != np.float32:
        raise UserError(f"{path}: features are {features.dtype} of shape {features.shape}, not float32 rows: {REMEDY}")
    sums = features.sum(1, dtype=np.float64)  # which is finite where all numbers are, in float64
    if not np.isfinite(sums).all():
        row = int(np.flatnonzero(~np.isfinite(sums))[0])
        raise UserError(f"{path}: row {row} holds NaN or infinity: a diverged model, or a damaged file: {REMEDY}")
    return digest, features


def _is_features(path: Path) -> bool:
    """Whether a file holds features that `save_embeddings` wrote; an empty file is nobody's."""
    if path.stat().st_size == 0:
        return True
    try:
        with safe_open(path, framework="numpy") as file:
            return "facts_sha256" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
