"""Embeddings on disk: a folder with `embeddings.safetensors` and `embeddings.json` that belong together."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import UserError
from ..outputs import written_aside

FEATURES_FILE, FACTS_FILE = "embeddings.safetensors", "embeddings.json"


@dataclass(frozen=True)
class Embeddings:
    """features: (N, D) float32, row i of file_names[i]; metadata: what made them (model, image backend...)."""

    features: np.ndarray
    file_names: list[str]
    metadata: dict[str, Any]


def save_embeddings(
    folder: str | os.PathLike[str], features: np.ndarray, file_names: Sequence[str], metadata: dict[str, Any]
) -> None:
    """Writes features (N, D), as float32, with their N file names and JSON-able metadata; replaces what is there.

    Both files are written aside and renamed, and the features carry the digest of the JSON: a crash between the renames
    is found at load. Raises UserError where the counts differ.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) != len(file_names):
        raise UserError(
            f"{folder}: features of shape {features.shape} for {len(file_names)} file names: give one row per image"
        )
    facts = json.dumps({"metadata": metadata, "file_names": list(file_names)}, ensure_ascii=False, indent=1).encode()
    folder = Path(folder)
    with written_aside(folder / FEATURES_FILE) as features_file, written_aside(folder / FACTS_FILE) as facts_file:
        save_file({"features": features}, features_file, metadata={"facts_sha256": _digest(facts)})
        facts_file.write_bytes(facts)


def load_embeddings(folder: str | os.PathLike[str]) -> Embeddings:
    """Reads a folder of `save_embeddings`. Raises UserError where it is missing, foreign, or its files do not agree."""
    folder = Path(folder)
    for name in (FEATURES_FILE, FACTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}: give a folder written by the embed command")
    facts = (folder / FACTS_FILE).read_bytes()
    try:
        with safe_open(folder / FEATURES_FILE, framework="numpy") as file:
            digest = (file.metadata() or {}).get("facts_sha256")
            features = file.get_tensor("features") if digest is not None else None
    except SafetensorError as error:
        raise UserError(f"{folder / FEATURES_FILE}: not readable ({error}): write the folder again") from error
    if features is None:
        raise UserError(f"{folder / FEATURES_FILE}: not written by the embed command: embed the images with it")
    if digest != _digest(facts):
        raise UserError(f"{folder}: {FACTS_FILE} does not belong to {FEATURES_FILE}: write the folder again")
    content = json.loads(facts)
    return Embeddings(features, content["file_names"], content["metadata"])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
