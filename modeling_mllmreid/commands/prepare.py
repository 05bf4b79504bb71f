"""`prepare`: a data set as Parquet with its card, to load by one name from disk or from the Hub."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ..data.leakage import shared_people_lines
from ..data.load import load_reid_dataset
from ..data.prepare import read_prepared, write_prepared
from ..options.arguments import DataArguments
from ..options.parser import parse
from ..utils.errors import UserError
from ..utils.outputs import check_output_folder


@dataclass
class PrepareArguments:
    """Where the prepared data goes."""

    output: str = field(metadata={"help": "Folder for the Parquet files and the card."})
    texts: str | None = field(default=None, metadata={"help": "texts.jsonl with continuations to join."})
    embed: bool = field(default=True, metadata={"help": "Put the images into the tables; otherwise their paths."})
    push_to: str | None = field(
        default=None, metadata={"help": "Name of a data set on the Hub to push to as well: private, with the images."}
    )

    def __post_init__(self) -> None:
        if self.push_to and not self.embed:
            raise ValueError("push_to needs the images in the tables: leave embed true")


def main(argv: list[str]) -> None:
    """Writes the tables and the card, and pushes them where a name is given."""
    data_args, args = parse((DataArguments, PrepareArguments), argv, "prepare")
    inputs = [data_args.dataset, data_args.data_dir, *(data_args.data_dirs or {}).values()]
    folders = [str(path) for path in inputs if path]
    check_output_folder(args.output, inputs=folders)
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, texts=args.texts, notes=notes, **data_args.options())
    # Names of files alone: the card travels, this machine's folders say nothing elsewhere.
    metadata = {"data set": _last_name(data_args.dataset), "captions": _last_name(data_args.captions_file)}
    metadata |= {"continuations": _last_name(args.texts), "MSMT17's training part": data_args.train_part}
    metadata |= {"CUHK03's boxes": data_args.boxes}
    name = _last_name(data_args.dataset) or "data"
    write_prepared(args.output, dataset, name=name, embed=args.embed, metadata=metadata, inputs=folders)
    for note in [*notes, *(f"leak: {line}" for line in shared_people_lines(dataset))]:
        print(note)
    print(f"{sum(map(len, dataset.values())):,} rows in {', '.join(dataset)}: {args.output}")
    if args.push_to:
        push(args.output, args.push_to)


def _last_name(path: str | None) -> str | None:
    """A path's last name; a name of a data set as it is."""
    return Path(path).name if path is not None and os.path.exists(path) else path


def push(folder: str, name: str) -> None:
    """Uploads the tables and the card, as a private data set.

    Raises UserError where the Hub refuses it, and for a public one, in which nothing is created or changed then.
    """
    read_prepared(folder)  # what is pushed can be loaded
    tables = sorted(path.relative_to(folder).as_posix() for path in Path(folder).glob("data/*.parquet"))
    api = HfApi()
    try:
        repository = name if "/" in name else f"{api.whoami()['name']}/{name}"
        if not is_private(api, repository):
            api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
            is_private(api, repository)  # somebody may have made it meanwhile
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            commit_message="Prepared data",
            allow_patterns=["README.md", *tables],
            # Shards of an earlier upload would be read together with these.
            delete_patterns="data/*",
        )
    except UserError:
        raise
    except Exception as error:  # the Hub's client raises its own and the network's errors
        raise UserError(f"push_to {name}: {' '.join(str(error).split())[:300]}") from error
    print(f"pushed: {name} (private)")


def is_private(api: HfApi, repository: str) -> bool:
    """Whether the data set is there, and private. Raises UserError for a public one."""
    try:
        private = api.dataset_info(repository).private
    except RepositoryNotFoundError:
        return False
    if not private:
        raise UserError(
            f"push_to {repository}: is public: pictures of people would be open to all: make it private or give "
            "another name"
        )
    return True
