"""A hook of MkDocs: pages that are written for a code host work on the site too.

- Pages link to files of the repository by their path. A Markdown file of the repository becomes a page of the site in
  `repository/`; a link to any other file becomes its text, as the site does not hold it. A notebook is a page.
- A link whose text is the name of its file gets the title of the page.
- A list may follow a paragraph or a block of code directly. Python-Markdown wants an empty line before it.
"""

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# The start of a list after a line that belongs to none.
LIST = re.compile(r"^(?![-|#\s]|\d+\.)(.+)\n(?=- |1\. )", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
NOTEBOOK = re.compile(r"\.ipynb$")
# The repository's own front page repeats the first steps of the site's.
HOME = {"README.md": "docs/README.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the Markdown files of the repository that pages link to, and those that these link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        for target in targets(path):
            if target.endswith(".md") and target not in known and target not in HOME and (ROOT / target).is_file():
                known.add(target)
                waiting.append(target)
                content = (ROOT / target).read_text(encoding="utf-8")
                files.append(File.generated(config, source_of(target), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page to where the site has their files."""
    path = path_of(page.file.src_uri)
    if not path.startswith("docs/"):
        # Histories and lists of measurements hold every word: a search shows them last.
        page.meta["search"] = {"boost": 0.3}

    def rewrite(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        target, anchor = resolve(path, link)
        if target is None:
            return match[0]
        source = source_of(HOME.get(target, target))
        if files.get_file_from_path(source) is None:
            return text
        as_page = NOTEBOOK.sub(".md", source)
        if as_page != source and as_page != page.file.src_uri:
            source = as_page
        if posixpath.basename(target) == posixpath.basename(text):
            text = title_of(target) or text
        return f"{image}[{text}]({posixpath.relpath(source, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return outside_code(markdown, lambda text: LIST.sub(r"\1\n\n", LINK.sub(rewrite, text)))


def title_of(path: str) -> str | None:
    """The title of a Markdown file or a notebook of the repository; None for another file."""
    text = (ROOT / path).read_text(encoding="utf-8") if path.endswith((".md", ".ipynb")) else ""
    if path.endswith(".ipynb"):
        text = "".join(json.loads(text)["cells"][0]["source"])
    title = TITLE.search(text)
    return title[1] if title else None


def targets(path: str) -> set[str]:
    """The files of the repository that a Markdown file links to."""
    found: set[str] = set()

    def collect(text: str) -> str:
        found.update(target for *_, link in LINK.findall(text) if (target := resolve(path, link)[0]) is not None)
        return text

    outside_code((ROOT / path).read_text(encoding="utf-8"), collect)
    return found


def resolve(path: str, link: str) -> tuple[str | None, str]:
    """Path in the repository that a link of the file at `path` leads to, or None for other links; the anchor."""
    if ":" in link or link.startswith("#"):
        return None, ""
    name, mark, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), name)), mark + anchor


def source_of(path: str) -> str:
    """Where the site keeps a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def path_of(source: str) -> str:
    """The path in the repository of a file of the site."""
    return source.removeprefix("repository/") if source.startswith("repository/") else f"docs/{source}"


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Changes the text of a page outside of its blocks of code."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0], "\n"]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
