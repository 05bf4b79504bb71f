"""MLLMReID on the command line: a table of commands, and nothing else."""

import difflib
import importlib
import sys

COMMANDS = {
    "demo": ("modeling_mllmreid.commands.demo", "the whole road on rendered pedestrians, without network or GPU"),
    "train": ("modeling_mllmreid.commands.train", "train a model on a data set; keeps the best checkpoint"),
    "evaluate": ("modeling_mllmreid.commands.evaluate", "mAP, CMC and mINP of a model on query and gallery"),
    "data": ("modeling_mllmreid.commands.data", "what a data set holds, and whether it is what the papers used"),
    "prepare": ("modeling_mllmreid.commands.prepare", "write a data set as Parquet with its card, for the Hub too"),
    "caption": ("modeling_mllmreid.commands.caption", "let a multimodal LLM describe the images that have no captions"),
    "continuations": ("modeling_mllmreid.commands.continuations", "let the frozen LLM continue every caption"),
    "ablate": ("modeling_mllmreid.commands.ablate", "the paper's comparisons over seeds, with contrasts and a report"),
    "export": ("modeling_mllmreid.commands.export", "write a checkpoint as it is published: full, thin or vision"),
    "push": ("modeling_mllmreid.commands.push", "put a checkpoint on the Hub, with its card, private by default"),
    "embed": ("modeling_mllmreid.commands.embed", "embed a folder of person crops"),
    "search": ("modeling_mllmreid.commands.search", "find the people of an embedded folder that look like a query"),
}
USAGE = "usage: run_reid.py COMMAND [config.yaml] [--field value ...]"


def table_of_contents() -> str:
    """Usage and one line for each command."""
    lines = [f"  {name:<14} {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join([USAGE, "", *lines, "", "`run_reid.py COMMAND --help` lists a command's fields."])


def main() -> int:
    """Runs the command that `sys.argv` names.

    Returns 0 on success, 2 for a user's mistake, 130 where interrupted, 143 where SIGTERM stopped a training.
    """
    command, *argv = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(table_of_contents())
        return 0
    if command not in COMMANDS:
        nearest = (difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0) or ["--help"])[0]
        print(f"error: unknown command {command!r}: did you mean {nearest!r}?", file=sys.stderr)
        return 2
    try:
        # Only now: the package imports torch, which takes seconds.
        from modeling_mllmreid.errors import UserError

        try:
            importlib.import_module(COMMANDS[command][0]).main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
