"""Which weights a report speaks of: a digest of a checkpoint's files."""

import hashlib
import os
from pathlib import Path


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the names and contents of the `*.safetensors` in a checkpoint and its adapter, "" without any."""
    root = Path(folder)
    files = sorted(path for pattern in ("*.safetensors", "adapter/*.safetensors") for path in root.glob(pattern))
    if not files:
        return ""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
