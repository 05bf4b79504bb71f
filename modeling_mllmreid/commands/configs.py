"""`configs`: lists the shipped recipes and launch configurations, or prints the path of one."""

import difflib
import textwrap
from pathlib import Path

from ..options.help_text import program_name
from ..utils.errors import UserError
from ..utils.shipped import CONFIGS, shipped_configs

HELP = """\
usage: {program} configs [NAME]

Without NAME lists what is shipped in configs/. With NAME prints the path of that file alone:
  {program} train NAME_OF_A_RECIPE --field value ...
  accelerate launch --config_file "$({program} configs one_node_ddp)" -m modeling_mllmreid train NAME_OF_A_RECIPE"""


def main(argv: list[str]) -> None:
    """Prints every name with the first comment of its file, or the path of the named file."""
    if {"-h", "--help", "--help_all", "--help-all"} & set(argv):
        print(HELP.format(program=program_name()))
        raise SystemExit(0)
    if len(argv) > 1:
        raise UserError(f"configs: {argv[1]!r} stands alone: give one name")
    shipped = shipped_configs()
    if argv:
        known = {name: path for paths in shipped.values() for name, path in paths.items()}
        name = argv[0].removesuffix(".yaml").removesuffix(".json")
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name[:80], known, 3, cutoff=0.0))
            raise UserError(f"configs: {name[:80]}: is not shipped: did you mean one of {near}?")
        print(known[name])
        return
    print(CONFIGS)
    for kind, paths in shipped.items():
        print(f"\n{kind}:")
        for name, path in paths.items():
            print(f"  {name:<24} {_first_comment(path)}".rstrip())


def _first_comment(path: Path) -> str:
    """Returns the comment in the first line of a file up to its colon; empty without a comment."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return textwrap.shorten(line[2:].split(": ")[0], 90) if line.startswith("# ") else ""
