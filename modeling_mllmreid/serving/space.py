"""A private Hugging Face Space with the page of a gallery that stays in its bucket."""

import json
import os
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from ..gallery.audit import Audit
from ..gallery.gallery import Gallery
from ..gallery.store import REMOTE
from ..hub.push import refusal
from ..utils.errors import UserError
from ..utils.outputs import atomic_folder
from ..utils.shipped import PACKAGE
from .protection import PASSWORD, Access
from .running import run_server

OPTIONS, AUDIT, USER = "MLLMREID_STORAGE_OPTIONS", "MLLMREID_AUDIT", "MLLMREID_USER"
HUB = "https://huggingface.co"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
# The requirements of the package and of its extras gallery, onnx and page.
REQUIRED = (
    *("torch", "transformers", "tokenizers", "accelerate", "datasets", "evaluate", "huggingface_hub", "jinja2", "peft"),
    *("safetensors", "numpy", "pillow", "pydantic", "pyyaml", "regex", "scipy", "tqdm", "pylance"),
    *("onnx", "onnxruntime", "onnxscript", "fastapi", "gradio", "python-multipart", "uvicorn"),
)
APP = """from modeling_mllmreid.serving.space import launch

launch({address})
"""
CARD = """---
title: Person gallery
sdk: gradio
sdk_version: {gradio}
app_file: app.py
---
# Person gallery
This Space has to stay private. It shows the gallery at `{address}`, and holds no row of it: the history of a Space
keeps every file, so an erased row would stay in it.

## Secrets to set
| secret | content |
|---|---|
| `MLLMREID_USER`, `MLLMREID_PASSWORD` | user and password (at least 8 characters); it does not start without them |
| `MLLMREID_STORAGE_OPTIONS` | options and keys of the bucket as JSON, such as `{{"aws_access_key_id": "..."}}` |
| `HF_TOKEN` | only for an address with `hf://` or a private model |

The model of the gallery has to be on the Hub or come with the package: a folder of another machine is not found.

## Audit trail
The variable `MLLMREID_AUDIT` names its folder. By default it is `audit` on the Space's own disk, and **it is lost at
every restart**. Mount persistent storage and name a folder in it, such as `/data/audit`.

## Responsible use
Images from which people can be recognised are biometric data. Use the page only with a legal basis, for a stated
purpose, and with a time after which rows are erased. A distance is a hint and no proof of identity: a human decides.
"""


def write_space(address: str, folder: Path) -> None:
    """Writes the files of a Space.

    Args:
        address (`str`): Address of the gallery in a bucket.
        folder (`Path`): The new folder.

    Raises:
        UserError: The address is a folder or holds a key, a package is missing, or the folder cannot be written.
    """
    if not address.startswith(REMOTE):
        raise UserError(
            f"gallery {address}: is a folder, and a Space keeps the history of its files, so erased rows would stay in "
            "it: move the gallery to a bucket (s3://, gs://, az://, hf://)"
        )
    if "?" in address or (not address.startswith("hf://") and "@" in address):
        raise UserError(f"gallery: the address may hold a key: give it without, and set the secret {OPTIONS}")
    requirements = [f"{name}=={_installed(name)}\n" for name in REQUIRED]
    with atomic_folder(folder) as new:
        (new / "README.md").write_text(CARD.format(gradio=_installed("gradio"), address=address), encoding="utf-8")
        (new / "app.py").write_text(APP.format(address=json.dumps(address)), encoding="utf-8")
        (new / "requirements.txt").write_text("".join(requirements), encoding="utf-8")
        shutil.copytree(PACKAGE, new / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def push_space(folder: Path, name: str) -> str:
    """Uploads a Space, private always. Returns the address of the commit. Raises UserError if the Hub refuses."""
    api = HfApi()
    try:
        api.create_repo(name, repo_type="space", space_sdk="gradio", private=True, exist_ok=True)
        check_space(name)
        return str(api.upload_folder(repo_id=name, repo_type="space", folder_path=folder).commit_url)
    except UserError:
        raise
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error


def check_space(name: str) -> None:
    """Raises UserError if there is no token, or a Space of this name is public. It writes nothing."""
    if not get_token():
        raise UserError(f"push {name}: no token: run `hf auth login`, or set HF_TOKEN to one that may write")
    try:
        private = HfApi().space_info(name).private
    except RepositoryNotFoundError:
        return
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    if not private:
        raise UserError(f"push {name}: this Space exists and is public: make it private, or give another name")


def launch(address: str) -> None:
    """Serves the gallery of a Space until it is stopped; a mistake is one line and exit code 2."""
    try:
        text = os.environ.get(OPTIONS, "{}")
        try:
            options = json.loads(text)
        except ValueError:
            options = None
        if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
            raise UserError(f"{OPTIONS}: is no JSON object of texts: set it as the README of the Space says")
        access = Access.of("0.0.0.0", os.environ.get(USER))
        port = os.environ.get("GRADIO_SERVER_PORT", "7860")
        if not port.isdecimal():
            raise UserError(f"GRADIO_SERVER_PORT {port}: is no port: give a number")
        gallery, audit = Gallery(address, options=options), Audit(os.environ.get(AUDIT, "audit"))
        # The Hub shows a Space in a frame.
        run_server(gallery, audit, access, "0.0.0.0", int(port), page=True, frames=HUB)
    except UserError as error:
        fixed = str(error).replace("--user", USER) if PASSWORD in str(error) else str(error)
        print(f"error: {fixed}", file=sys.stderr)
        raise SystemExit(2) from None


def _installed(name: str) -> str:
    """Returns the public version of an installed package. Raises UserError if it is missing."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        raise UserError(f"page: {name} is not installed: pip install 'mllmreid[gallery,onnx,page]'") from None
