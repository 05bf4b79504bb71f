"""`push_to_hub` of models, processors and configurations: private by default, without local paths."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORIGIN = re.compile(r"(.*_)?(name_or_path|tokenizer_file|vocab_file|merges_file|cache_dir)")
# A path is meant to stay in these: a thin form's backbone, which a push refuses; in the others "/" is only a character.
KEPT = ("backbone", "content", "chat_template")
ABSOLUTE = re.compile(r"(file://)?(/|~[/\\]|[A-Za-z]:[\\/]|\\\\)[^\n]*[^\n/\\]")
# An absolute path inside a text; a web address is none, and neither is an escape in a regular expression.
_NAME = r"[\w.@+=,#$%~-]+"
INSIDE = re.compile(
    rf"(?<![\w./:<&;\\])(?:file://)?(?:~?(?:/{_NAME}){{2,}}|~/{_NAME}|[A-Za-z]:[\\/](?:{_NAME}[\\/]?)+)"
)


def without_local_paths(value: Any) -> Any:
    """The same content, at every depth, without the paths of this machine: a name of origin goes, others are cut."""
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
    """A path's last part."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def is_local(name: str) -> bool:
    """Whether a model's name is a path of this machine, not a name on the Hub (owner/name)."""
    return bool(name) and (re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None or os.path.exists(name))


# The vocabulary is what a tokenizer is made of, and a "/" in it is a token; the index of weights has names alone.
VERBATIM = (
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)


class PrivatePush:
    """How what is ours goes to the Hub. It stands before the class of transformers among the bases."""

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs: Any) -> str:
        """As in transformers, but into a private repository where `private=False` is not given.

        Raises ValueError where the repository exists and is public, before anything is created or sent; `private=False`
        says that it may be.
        """
        if private is not False:
            refuse_public(repo_id, kwargs.get("token"))
        parent: Any = super()
        return parent.push_to_hub(repo_id, private=private is not False, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises ValueError for `push_to_hub=True`, which would publish the folder as it is."""
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained: push_to_hub is set: leave it out, and call push_to_hub(name)")
        parent: Any = super()
        return parent.save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """What transformers calls with the folder of the saved files, a temporary one, before they go up."""
        for path in Path(working_dir).rglob("*.json"):
            if path.name not in VERBATIM:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content != without_local_paths(content):
                    shown = json.dumps(without_local_paths(content), indent=2, ensure_ascii=False)
                    path.write_text(shown + "\n", encoding="utf-8")
        parent: Any = super()
        return parent._upload_modified_files(working_dir, *args, **kwargs)


def refuse_public(repo_id: str, token: str | bool | None = None) -> None:
    """Raises ValueError where the model repository exists and is public; what the Hub's client raises else goes on."""
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
            f"{name}: this repository exists and is public: everybody could load what is pushed: give private=False to "
            "push there all the same, make it private, or give another name"
        )
