"""`page`: writes a private Hugging Face Space with the page of a gallery, and can upload it."""

from dataclasses import dataclass, field
from pathlib import Path

from ..options.parser import parse
from ..serving.space import NAME, OPTIONS, check_space, push_space, write_space
from ..utils.errors import UserError


@dataclass
class PageArguments:
    """The Space."""

    space: str = field(metadata={"help": "Name of the Space on the Hub, owner/name."})
    gallery: str = field(metadata={"help": "Address of the gallery in a bucket; a folder is refused."})
    output: str = field(metadata={"help": "New folder for the files of the Space."})
    storage_options: dict[str, str] = field(
        default_factory=dict, metadata={"help": "Refused: keys are a secret of the Space and never in its files."}
    )
    push: bool = field(default=False, metadata={"help": "Upload the Space. It is always private."})


def main(argv: list[str]) -> None:
    """Writes the Space, and uploads it if that is asked for."""
    (args,) = parse((PageArguments,), argv, "page")
    if not NAME.fullmatch(args.space):
        raise UserError(f"space {args.space}: is no name of a Space: give owner/name")
    if args.storage_options:
        raise UserError(
            f"storage_options: a Space keeps the history of its files: set the secret {OPTIONS} in the Space"
        )
    if args.push:
        check_space(args.space)
    write_space(args.gallery, Path(args.output))
    print(f"written: {args.output} (keys of the bucket: secret {OPTIONS} of the Space)")
    if args.push:
        print(f"pushed: {push_space(Path(args.output), args.space)}")
