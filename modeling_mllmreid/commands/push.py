"""`push`: a checkpoint to the Hub, private by default, as its export: loadable, with a card, without ID classifier."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..hub.export import form_of, write_export
from ..hub.push import check_publishable, create_repository, upload
from .arguments import ModelArguments
from .loading import load_encoder
from .options import parse


@dataclass
class PushArguments:
    """Where to, and how."""

    to: str = field(metadata={"help": "Name on the Hub, owner/name."})
    private: bool = field(default=True, metadata={"help": "Make a new repository private."})
    branch: str | None = field(default=None, metadata={"help": "Branch to push to; by default main."})


def main(argv: list[str]) -> None:
    """Pushes an export as it is, and a training's folder as the export of the same form; that folder stays as it is."""
    model_args, args = parse((ModelArguments, PushArguments), argv, "push")
    folder = Path(model_args.model)
    if not folder.is_dir():
        raise UserError(f"model {folder}: no such folder: give a checkpoint's or an export's")
    staged = folder.with_name(f".{folder.name}.push")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        if not is_export(folder):
            model, processor = load_encoder(model_args)
            write_export(model, processor, staged, to=form_of(model), name=args.to, source=folder)
            folder = staged
        else:
            name_in_card(folder, args.to)
        check_publishable(folder)
        name = create_repository(args.to, private=args.private)
        print(f"pushed: {upload(folder, name, message='Push of the model', revision=args.branch)}")
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def name_in_card(folder: Path, name: str) -> None:
    """Lets the card of an export, which was written before it had a name on the Hub, load the model by that name."""
    card = folder / "README.md"
    text = re.sub(
        r'(from_pretrained\(")[^"]*(", trust_remote_code=True\))', rf"\g<1>{name}\g<2>", card.read_text("utf-8")
    )
    card.write_text(text, encoding="utf-8")


def is_export(folder: Path) -> bool:
    """Whether the folder was written by `export`: it has a card and no ID classifier."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "README.md").is_file() and not config.get("num_identities")
