"""Reads README and docs: pages, code blocks, inline code, command lines."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def code_blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, in order."""
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def section_block(page: Path, section: str, language: str) -> str:
    """The only code block in one language under a heading of the second level."""
    text = page.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (code,) = (code for found, code in BLOCK.findall(text) if found == language)
    return code


def inline_code(page: Path) -> list[str]:
    """The inline code of a page, each on one line."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def command_lines(page: Path) -> list[list[str]]:
    """Every shell command of a page that is written out, as words: those of its blocks and of its inline code."""
    lines = [line for block in code_blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in inline_code(page) if "..." not in code]
    # The path that `mllmreid configs NAME` prints for a launch configuration.
    lines = [re.sub(r'"\$\(mllmreid configs (\w+)\)"', r"configs/accelerate/\1.yaml", line) for line in lines]
    commands = [command for line in lines for command in line.split("&&")]
    return [words for words in (shlex.split(command, comments=True) for command in commands) if words]
