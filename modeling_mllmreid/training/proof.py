"""Proof that this user's trainings wrote a checkpoint whose files can run code when they are read.

transformers and Accelerate read a checkpoint's pickles as plain tensors and numbers alone (`weights_only`), and what is
more is refused. DeepSpeed reads its own without that limit. So a checkpoint written under DeepSpeed holds an HMAC over
those files, by a key that lies in the user's own folder and in no checkpoint.
Source: RFC 2104.
"""

import hashlib
import hmac
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from ..errors import UserError
from ..evaluation.report import write_json
from ..formats import ProofFile, read_json
from ..outputs import written_aside

PROOF_FILE = "proof.json"
# What is only text or numbers to all who read it. DeepSpeed's `latest`, which names a folder, is not among them.
HARMLESS = frozenset({".safetensors", ".json", ".md", ".py", ".jinja", ".txt", ".model"})
KEY_BYTES = 32


def prove(checkpoint: Path) -> None:
    """Writes the proof into a checkpoint that is written."""
    write_json(checkpoint / PROOF_FILE, {"hmac": _hmac_of(checkpoint)})


def refuse_foreign(checkpoint: Path) -> None:
    """Raises UserError where this user's trainings did not write the files that DeepSpeed would unpickle."""
    path = checkpoint / PROOF_FILE
    said = f"checkpoint {checkpoint}: DeepSpeed would run whatever code its files hold, and"
    remedy = "give the checkpoint's model as model instead, or resume_from_checkpoint false to start anew"
    if not path.is_file():
        raise UserError(f"{said} it has no {PROOF_FILE} that says that your own training wrote them: {remedy}")
    if not hmac.compare_digest(read_json(path, ProofFile, remedy=remedy).hmac, _hmac_of(checkpoint)):
        raise UserError(f"{said} they are not those that your own training wrote ({PROOF_FILE}): {remedy}")


def _hmac_of(checkpoint: Path) -> str:
    """Over names and contents of the files that are not harmless. Raises UserError for a link among them."""
    files = []
    for path in sorted(checkpoint.rglob("*")):
        if path.is_symlink():
            raise UserError(f"checkpoint {checkpoint}: {path.name} is a symbolic link: put the file itself there")
        if path.is_file() and path.suffix not in HARMLESS:
            files.append(path)
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(_sha256, files)
        names = [path.relative_to(checkpoint).as_posix() for path in files]
        covered = list(zip(names, digests, strict=True))
    return hmac.new(_key(), json.dumps(covered).encode(), hashlib.sha256).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key() -> bytes:
    """The user's own key, made where it is missing."""
    path = Path(HF_HOME) / "mllmreid" / "checkpoint_key"
    if not path.exists():
        with written_aside(path) as aside:
            aside.write_bytes(secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise UserError(f"{path}: is no key of {KEY_BYTES} bytes: remove it, and start the training anew")
    return key
