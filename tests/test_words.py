"""The project is written in plain present-day English."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHRASES = ("the mend", "whoever", "is told", "somebody alike", "as it lies")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".cfg", ".toml", ".txt", ".html", ".css", ".js", ".cff", ".sh", ".j2"}
# This file lists the phrases.
OMITTED = ("tests/",)


def project_files() -> list[str]:
    """The tracked text files, or all of them where the project is no git checkout."""
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = result.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    names = [name for name in names if not name.startswith((*OMITTED, ".")) and Path(name).suffix in SUFFIXES]
    return [name for name in names if (ROOT / name).is_file()]


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_file_has_an_archaic_phrase(phrase):
    # A line may end inside a phrase, and a comment starts its next line with #.
    pattern = re.compile(r"\b" + phrase.replace(" ", r"[\s#]+") + r"\b", re.IGNORECASE)
    assert len(project_files()) > 100
    found = [name for name in project_files() if pattern.search((ROOT / name).read_text(encoding="utf-8"))]
    assert not found
