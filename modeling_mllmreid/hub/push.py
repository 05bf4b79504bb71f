"""To the Hub: what is published is checked first, goes up in one commit, and can be taken up again after a break."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..model.adapters import ADAPTER, SETTINGS, WEIGHTS
from ..utils.errors import UserError
from ..utils.markdown import in_python_string
from .publication import CARD, ONNX, check_publishable, publication

# What another form, or another number of shards, may have left in the repository: it would be loaded in place of this.
LEFT_WEIGHTS = re.compile(
    rf"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|{ADAPTER}/({re.escape(SETTINGS)}|{re.escape(WEIGHTS)})|"
    + "|".join(map(re.escape, ONNX))
)


def create_repository(name: str, *, private: bool = True, flag: str = "--private", token: str | None = None) -> str:
    """Makes the repository where there is none; its full name.

    Raises UserError where the Hub refuses, and for a public one where `private` is wanted, before anything is uploaded.
    flag: the option that says `private`.
    """
    repository, there = find_repository(name, private=private, flag=flag, token=token)
    if there:
        return repository
    try:
        HfApi(token=token).create_repo(repository, private=private, exist_ok=True)
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    # Somebody may have made it meanwhile.
    return find_repository(repository, private=private, flag=flag, token=token)[0]


def find_repository(
    name: str, *, private: bool = True, flag: str = "--private", token: str | None = None
) -> tuple[str, bool]:
    """The repository's full name, and whether it is there. Writes nothing, raises UserError as `create_repository`."""
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
    """Uploads the files of an export's form in one commit and returns the commit's address.

    The card loads the model by `name`; nothing in the folder is changed. Weights of another form that lie in the
    repository are removed by the same commit. Files that arrived before a break are not sent again.
    Raises UserError for a folder that is no export, and where the Hub refuses it.
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
        there = api.list_repo_files(name, revision=revision)
        left = [path for path in there if LEFT_WEIGHTS.fullmatch(path) and path not in content]
        removals = [CommitOperationDelete(path_in_repo=path) for path in left]
        done = api.create_commit(name, [*additions, *removals], commit_message=message, revision=revision)
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise refusal(name, error) from error
    return str(done.commit_url)


def card_with_name(card: Path | bytes, name: str) -> bytes:
    """The card of an export, which was written before it had a name on the Hub, loading the model by that name."""
    text = (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8", "replace")
    loads = re.compile(r'(from_pretrained\(")(?:[^"\\\n]|\\.)*(", trust_remote_code=True\))')
    return loads.sub(lambda match: f"{match[1]}{in_python_string(name)}{match[2]}", text).encode()


def refusal(name: str, error: Exception) -> UserError:
    """One line for what the Hub or the network said, with the fix."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    fix = "try again, what arrived is not sent again"
    if status == 401:
        fix = "the token is not valid: run `hf auth login`, or set HF_TOKEN"
    elif status == 403:
        fix = "the token may not write there: give a name of your own, or a token that may write"
    elif isinstance(error, RepositoryNotFoundError):
        fix = "the repository is not there, or not for this token"
    return UserError(f"push {name}: {' '.join(str(error).split())[:200]}: {fix}")
