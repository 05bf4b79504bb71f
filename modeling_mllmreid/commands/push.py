"""`push`: pushes a checkpoint to the Hub as an export: private by default, with a card, without its ID classifier."""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.licences import licence_of
from ..hub.export import form_of, write_export
from ..hub.publication import check_publishable, form_files
from ..hub.push import create_repository, find_repository, upload
from ..options.arguments import ModelArguments
from ..options.parser import parse
from ..training.loading import load_encoder
from ..utils.checkpoint_formats import ExportConfigFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.outputs import scratch_folder


@dataclass
class PushArguments:
    """The repository on the Hub."""

    to: str = field(metadata={"help": "Name of the repository on the Hub, owner/name."})
    private: bool = field(
        default=True, metadata={"help": "Create private repositories and refuse public ones; false: allow public ones."}
    )
    branch: str | None = field(default=None, metadata={"help": "Branch to push to. Default: main."})


def main(argv: list[str]) -> None:
    """Pushes an export, or exports the folder of a training run and pushes that; the folder is not changed."""
    model_args, args = parse((ModelArguments, PushArguments), argv, "push")
    folder = Path(model_args.model)
    if not folder.is_dir():
        raise UserError(f"model {folder}: no such folder: give the folder of a checkpoint or an export")
    exported = is_export(folder)
    # Ask the Hub before a large model is loaded and written.
    find_repository(args.to, private=args.private)
    if exported:
        push(folder, args)
        pushed = {name.partition("/")[0] for name in form_files(folder)}
        other = sorted({path.name for path in folder.iterdir()} - pushed)
        if other:
            print(f"not part of the export, not pushed: {', '.join(other[:10])}{' ...' if len(other) > 10 else ''}")
        return
    with scratch_folder(folder) as scratch:
        model, processor = load_encoder(model_args)
        model.config.base_licence = model.config.base_licence or licence_of(folder)
        write_export(model, processor, scratch / "export", to=form_of(model), name=args.to, source=folder)
        push(scratch / "export", args)


def push(folder: Path, args: PushArguments) -> None:
    """Pushes an export and prints its address."""
    check_publishable(folder)
    name = create_repository(args.to, private=args.private)
    print(f"pushed: {upload(folder, name, message='Push of the model', revision=args.branch)}")


def is_export(folder: Path) -> bool:
    """Returns whether `export` wrote the folder: it has a card and no ID classifier."""
    config = read_json(folder / "config.json", ExportConfigFile, remedy="give the folder of a checkpoint or an export")
    return (folder / "README.md").is_file() and not config.num_identities
