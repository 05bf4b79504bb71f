"""`push_to_hub` of models, processors and configurations: private by default, without local paths."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORIGIN = re.compile(r"(.*_)?(name_or_path|tokenizer_file|vocab_file|merges_file|cache_dir)")
# These keep their paths: a thin form's backbone, which a push refuses; in the others "/" is only a character.
KEPT = ("backbone", "content", "chat_template")
ABSOLUTE = re.compile(r"(file://)?(/|~[/\\]|[A-Za-z]:[\\/]|\\\\)[^\n]*[^\n/\\]")
# An absolute path within a text, but no web address and no escape of a regular expression.
_NAME = r"[\w.@+=,#$%~-]+"
INSIDE = re.compile(
    rf"(?<![\w./:<&;\\])(?:file://)?(?:~?(?:/{_NAME}){{2,}}|~/{_NAME}|[A-Za-z]:[\\/](?:{_NAME}[\\/]?)+)"
)


def without_local_paths(value: Any) -> Any:
    """Returns JSON content without the paths of this machine, at every depth.

    Fields of origin, such as `_name_or_path`, are removed if they hold a path. Other paths are cut to their last name.
    """
    if isinstance(value, Mapping):
        return {
            key: item if key in KEPT else without_local_paths(item)
            for key, item in value.items()
            if not (ORIGIN.fullmatch(str(key)) and isinstance(item, str) and is_local(item))
        }
    if isinstance(value, (list, tuple)):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str):
        return last_name(value) if ABSOLUTE.fullmatch(value) else INSIDE.sub(lambda m: last_name(m[0]), value)
    return value


def last_name(path: str) -> str:
    """Returns the last name of a path."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def is_local(name: str) -> bool:
    """Returns whether a model's name is a path of this machine instead of a name on the Hub (owner/name)."""
    return bool(name) and (re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None or os.path.exists(name))


# Files without paths: in a tokenizer's vocabulary "/" is a token, and the index of the weights holds file names.
VERBATIM = (
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)


class PrivatePush:
    """Base class for pushes to the Hub that are private by default; it precedes transformers' class in the bases."""

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs: Any) -> str:
        """Pushes to the Hub as in transformers, but to a private repository by default.

        Args:
            repo_id (`str`):
                Name of the repository.
            private (`bool`, *optional*, defaults to `True`):
                `False` allows a public repository.
            **kwargs:
                As in transformers.

        Returns:
            `str`: address of the commit.

        Raises:
            ValueError: if the repository exists and is public, before anything is created or uploaded.
        """
        if private is not False:
            refuse_public(repo_id, kwargs.get("token"))
        parent: Any = super()
        address: str = parent.push_to_hub(repo_id, private=private is not False, **kwargs)
        return address

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Saves as in transformers. Raises ValueError for `push_to_hub=True`, which publishes the folder unchecked."""
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained: push_to_hub is set: leave it out, and call push_to_hub(name)")
        parent: Any = super()
        return parent.save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Removes local paths from the saved files; transformers calls it with their temporary folder at a push."""
        for path in Path(working_dir).rglob("*.json"):
            if path.name not in VERBATIM:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content != without_local_paths(content):
                    cleaned = json.dumps(without_local_paths(content), indent=2, ensure_ascii=False)
                    path.write_text(cleaned + "\n", encoding="utf-8")
        parent: Any = super()
        return parent._upload_modified_files(working_dir, *args, **kwargs)


def refuse_public(repo_id: str, token: str | bool | None = None) -> None:
    """Raises ValueError if the model repository exists and is public; errors of the Hub's client pass through."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token)
    name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
    try:
        public = not api.model_info(name).private
    except RepositoryNotFoundError:
        return
    if public:
        raise ValueError(
            f"{name}: this repository exists and is public, so anyone could load the push: give private=False to "
            "push there anyway, make it private, or give another name"
        )
