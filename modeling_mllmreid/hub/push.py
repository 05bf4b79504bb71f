"""To the Hub: what is published is checked first, goes up in one commit, and can be taken up again after a break."""

import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Whatever else lies in the folder stays at home: crops, features, optimiser states.
PUBLISHED = ["*.json", "*.jinja", "*.model", "*.onnx", "*.onnx.data", "*.py", "*.safetensors", "*.txt"]
PUBLISHED += ["LICENSE*", "NOTICE", "README.md", "loss.png"]


def check_publishable(folder: Path) -> None:
    """Raises UserError unless the folder is an export that others can load: config, code, processor, card, weights."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"push {folder}: config.json cannot be read ({error}): give the folder of an export") from error
    code = {entry.split(".")[0] for entry in config.get("auto_map", {}).values() if isinstance(entry, str)}
    needed = ["README.md", "processor_config.json", *(f"{name}.py" for name in sorted(code))]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing or not code:
        raise UserError(f"push {folder}: has no {(missing or ['code'])[0]}: make it with run_reid.py export")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"push {folder}: has no weights (*.safetensors): make it with run_reid.py export")
    pickles = [path.name for path in folder.rglob("*") if path.suffix in PICKLES and "checkpoint-" not in str(path)]
    if pickles:
        raise UserError(f"push {folder}: holds {pickles[0]}, a pickle, which can run code: remove it")
    if config.get("num_identities"):
        raise UserError(f"push {folder}: has the ID classifier, templates of the training people: export it first")
    backbone = config.get("backbone")
    if backbone and (Path(backbone).is_dir() or backbone.startswith(("/", ".", "~"))):
        raise UserError(
            f"push {folder}: its backbone {backbone} is a folder, which others do not have: export it with --backbone "
            "and the backbone's name on the Hub, or with --to full"
        )


def create_repository(name: str, *, private: bool = True, token: str | None = None) -> str:
    """Makes the repository where there is none; its full name. Raises UserError where the Hub refuses."""
    if not (token or get_token()):
        raise UserError(f"push {name}: no token: run `hf auth login`, or set HF_TOKEN to one that may write")
    try:
        return HfApi(token=token).create_repo(name, private=private, exist_ok=True).repo_id
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error


def upload(folder: Path, name: str, *, message: str, revision: str | None = None, token: str | None = None) -> str:
    """Uploads a checked folder in one commit and returns the commit's address.

    Files that arrived before a break are not sent again. Raises UserError where the Hub refuses it.
    """
    check_publishable(folder)
    try:
        done = HfApi(token=token).upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            allow_patterns=PUBLISHED,
            ignore_patterns=["checkpoint-*"],
        )
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    return str(done.commit_url)


def refusal(name: str, error: Exception) -> UserError:
    """One line for what the Hub or the network said, with the mend."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    mend = "try again, what arrived is not sent again"
    if status == 401:
        mend = "the token is not valid: run `hf auth login`, or set HF_TOKEN"
    elif status == 403:
        mend = "the token may not write there: give a name of your own, or a token that may write"
    elif isinstance(error, RepositoryNotFoundError):
        mend = "the repository is not there, or not for this token"
    return UserError(f"push {name}: {' '.join(str(error).split())[:200]}: {mend}")
