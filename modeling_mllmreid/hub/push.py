"""Pushes an export to the Hub: checked first, in one commit, and without sending files again after a break."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..model.adapters import ADAPTER, SETTINGS, WEIGHTS
from ..utils.errors import UserError
from ..utils.markdown import in_python_string
from .publication import CARD, ONNX, check_publishable, publication

# Weights of another form or another number of shards that a repository may hold: they would be loaded instead.
STALE_WEIGHTS = re.compile(
    rf"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|{ADAPTER}/({re.escape(SETTINGS)}|{re.escape(WEIGHTS)})|"
    + "|".join(map(re.escape, ONNX))
)


def create_repository(name: str, *, private: bool = True, flag: str = "--private", token: str | None = None) -> str:
    """Creates a repository if it does not exist.

    Args:
        name (`str`):
            Name of the repository, with or without the owner.
        private (`bool`, *optional*, defaults to `True`):
            Whether the repository must be private.
        flag (`str`, *optional*, defaults to `"--private"`):
            The command's option for `private`, for errors.
        token (`str`, *optional*):
            Token for the Hub; by default the stored one.

    Returns:
        `str`: the full name, owner/name.

    Raises:
        UserError: if the Hub refuses, and for a public repository if it must be private, before any upload.
    """
    repository, exists = find_repository(name, private=private, flag=flag, token=token)
    if exists:
        return repository
    try:
        HfApi(token=token).create_repo(repository, private=private, exist_ok=True)
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    # Another process may have created it in the meantime.
    return find_repository(repository, private=private, flag=flag, token=token)[0]


def find_repository(
    name: str, *, private: bool = True, flag: str = "--private", token: str | None = None
) -> tuple[str, bool]:
    """Returns the repository's full name and whether it exists. It writes nothing; raises as `create_repository`."""
    if not (token or get_token()):
        raise UserError(f"push {name}: no token: run `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi(token=token)
    try:
        repository = name if "/" in name else f"{api.whoami()['name']}/{name}"
        public = not api.model_info(repository).private
    except RepositoryNotFoundError:
        return repository, False
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    if private and public:
        raise UserError(
            f"push {name}: this repository exists and is public, so anyone could load the push: give "
            f"`{flag} false` to push there anyway, make it private, or give another name"
        )
    return repository, True


def upload(folder: Path, name: str, *, message: str, revision: str | None = None, token: str | None = None) -> str:
    """Uploads an export in one commit.

    The same commit removes weights of another form from the repository. Files that arrived before a break are not
    sent again. The folder does not change.

    Args:
        folder (`Path`):
            The export's folder.
        name (`str`):
            Full name of the repository, which the uploaded card loads the model by.
        message (`str`):
            Message of the commit.
        revision (`str`, *optional*):
            Branch; by default the main one.
        token (`str`, *optional*):
            Token for the Hub; by default the stored one.

    Returns:
        `str`: address of the commit.

    Raises:
        UserError: for a folder that is no export, and if the Hub refuses.
    """
    check_publishable(folder)
    content = publication(folder)
    content[CARD] = card_with_name(content[CARD], name)
    additions = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=file if isinstance(file, bytes) else str(file))
        for path, file in content.items()
    ]
    api = HfApi(token=token)
    try:
        present = api.list_repo_files(name, revision=revision)
        stale = [path for path in present if STALE_WEIGHTS.fullmatch(path) and path not in content]
        removals = [CommitOperationDelete(path_in_repo=path) for path in stale]
        commit = api.create_commit(name, [*additions, *removals], commit_message=message, revision=revision)
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    return str(commit.commit_url)


def card_with_name(card: Path | bytes, name: str) -> bytes:
    """Returns an export's card with the model's name on the Hub in its code."""
    text = (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8", "replace")
    load_calls = re.compile(r'(from_pretrained\(")(?:[^"\\\n]|\\.)*(", trust_remote_code=True\))')
    return load_calls.sub(lambda match: f"{match[1]}{in_python_string(name)}{match[2]}", text).encode()


def refusal(name: str, error: Exception) -> UserError:
    """Returns the error for a refusal by the Hub or the network, in one line with a fix."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    fix = "try again, files that arrived are not sent again"
    if status == 401:
        fix = "the token is not valid: run `hf auth login`, or set HF_TOKEN"
    elif status == 403:
        fix = "the token may not write there: give a name of your own, or a token that may write"
    elif isinstance(error, RepositoryNotFoundError):
        fix = "the repository does not exist, or this token may not read it"
    return UserError(f"push {name}: {' '.join(str(error).split())[:200]}: {fix}")
