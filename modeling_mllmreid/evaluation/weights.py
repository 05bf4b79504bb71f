"""Which weights a report speaks of: a digest of a checkpoint's files."""

import hashlib
import os
from pathlib import Path

from ..errors import UserError
from ..retrieval.index import FEATURES_FILE


def weights_digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the names and contents of the `*.safetensors` in a checkpoint and its adapter, "" without any.

    Embeddings that somebody keeps in the folder are no weights. Raises UserError for a file that cannot be read.
    """
    root = Path(folder)
    found = sorted(path for pattern in ("*.safetensors", "adapter/*.safetensors") for path in root.glob(pattern))
    files = [path for path in found if path.name != FEATURES_FILE]
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
