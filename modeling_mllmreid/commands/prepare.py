"""`prepare`: writes a data set as Parquet with a card, and pushes it to the Hub on request."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from ..data.leakage import shared_people_lines
from ..data.load import load_reid_dataset
from ..data.prepare import read_prepared, write_prepared
from ..options.data_arguments import DataArguments
from ..options.parser import parse
from ..utils.errors import UserError
from ..utils.outputs import check_output_folder


@dataclass
class PrepareArguments:
    """Where the prepared data set is written."""

    output: str = field(metadata={"help": "Folder for the Parquet files and the card."})
    texts: str | None = field(default=None, metadata={"help": "File of continuations (texts.jsonl) to join."})
    embed: bool = field(default=True, metadata={"help": "Store the images in the tables; false: store their paths."})
    push_to: str | None = field(
        default=None,
        metadata={"help": "Name of a data set on the Hub to push to; it is private and contains the images."},
    )

    def __post_init__(self) -> None:
        if self.push_to and not self.embed:
            raise ValueError("push_to needs the images in the tables: leave embed true")


def main(argv: list[str]) -> None:
    """Writes the tables and the card; pushes them if a name on the Hub is given."""
    data_args, args = parse((DataArguments, PrepareArguments), argv, "prepare")
    inputs = [data_args.dataset, data_args.data_dir, *(data_args.data_dirs or {}).values()]
    folders = [str(path) for path in inputs if path]
    check_output_folder(args.output, inputs=folders)
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, texts=args.texts, notes=notes, **data_args.options())
    # File names without folders: the card is published, and local paths mean nothing elsewhere.
    metadata = {"data set": _last_name(data_args.dataset), "captions": _last_name(data_args.captions_file)}
    metadata |= {"continuations": _last_name(args.texts), "MSMT17's training images": data_args.train_part}
    metadata |= {"CUHK03's boxes": data_args.boxes}
    name = _last_name(data_args.dataset) or "data"
    write_prepared(args.output, dataset, name=name, embed=args.embed, metadata=metadata, inputs=folders)
    for note in [*notes, *(f"leak: {line}" for line in shared_people_lines(dataset))]:
        print(note)
    print(f"{sum(map(len, dataset.values())):,} images in {', '.join(dataset)}: {args.output}")
    if args.push_to:
        push(args.output, args.push_to)


def _last_name(path: str | None) -> str | None:
    """Returns the last component of an existing path; a name on the Hub stays as it is."""
    return Path(path).name if path is not None and os.path.exists(path) else path


def push(folder: str, name: str) -> None:
    """Uploads the tables and the card as a private data set.

    Raises UserError if the Hub refuses the upload, and for a public data set, which is not changed.
    """
    read_prepared(folder)  # raises unless the folder can be loaded
    tables = sorted(path.relative_to(folder).as_posix() for path in Path(folder).glob("data/*.parquet"))
    api = HfApi()
    try:
        repository = name if "/" in name else f"{api.whoami()['name']}/{name}"
        if not is_private(api, repository):
            api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
            is_private(api, repository)  # it may have been created in the meantime
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            commit_message="Prepared data",
            allow_patterns=["README.md", *tables],
            # Old shards would be read together with the new ones.
            delete_patterns="data/*",
        )
    except UserError:
        raise
    except Exception as error:  # the client raises its own errors and those of the network
        raise UserError(f"push_to {name}: {' '.join(str(error).split())[:300]}") from error
    print(f"pushed: {name} (private)")


def is_private(api: HfApi, repository: str) -> bool:
    """Returns whether the data set exists and is private. Raises UserError for a public one."""
    try:
        private = api.dataset_info(repository).private
    except RepositoryNotFoundError:
        return False
    if not private:
        raise UserError(
            f"push_to {repository}: is public and would publish pictures of people: make it private or give "
            "another name"
        )
    return True
