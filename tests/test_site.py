"""The documentation as a site: it builds without the network, a warning is an error, and it names the public API."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from documents import ROOT

import modeling_mllmreid

LINKS = ROOT / "docs/site/links.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built by `mkdocs build` as `mkdocs.yml` says."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def links():
    """The module of the hook."""
    spec = importlib.util.spec_from_file_location("links", LINKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference(site):
    reference = (site / "api.html").read_text(encoding="utf-8")
    assert set(re.findall(r'id="modeling_mllmreid\.(\w+)"', reference)) == set(modeling_mllmreid.__all__)


def test_docstrings_are_read_as_sections(site):
    reference = (site / "api.html").read_text(encoding="utf-8")
    text = reference.partition('id="modeling_mllmreid.rank_gallery"')[2].partition('id="modeling_mllmreid.')[0]
    assert [word for word in ("Parameters:", "Returns:", "Raises:", "Examples:") if f"{word}</" not in text] == []
    # Types of docstrings have no marks of their source, names lead to their entries, signatures have several lines.
    words = re.sub(r"<[^>]+>", "", re.sub(r"<pre.*?</pre>", "", reference, flags=re.DOTALL))
    assert [mark for mark in ("`", "*optional*", "defaults to", "[MllmReIDConfig]") if mark in words] == []
    assert 'href="#modeling_mllmreid.load_for_training"' in reference.partition('id="modeling_mllmreid.train_reid"')[2]
    assert re.search(r"^    <[^>]+>query_features<", reference, re.MULTILINE)


def test_pages_of_the_repository_are_pages_of_the_site(site):
    assert (site / "repository/benchmarks/RESULTS.html").is_file()
    contributing = (site / "repository/CONTRIBUTING.html").read_text(encoding="utf-8")
    assert 'href="../layout.html"' in contributing


def test_a_notebook_is_a_page_with_its_outputs(site):
    page = (site / "notebooks/fine_tune.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/') == 4 and 'href="fine_tune.ipynb">Download this notebook</a>' in page
    listed = (site / "notebooks/index.html").read_text(encoding="utf-8")
    assert '<a href="fine_tune.html">Fine-tune a model on your own crops</a>' in listed


def test_a_link_that_is_the_name_of_a_file_gets_its_title(site, links):
    assert '<a href="install.html">Install</a>' in (site / "index.html").read_text(encoding="utf-8")
    page = (site / "own_crops.html").read_text(encoding="utf-8")
    assert '<a href="training.html">' in page and "training.md" not in page
    assert links.title_of("docs/images/data_flow.png") is None


def test_no_link_leads_out_of_the_site(site):
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", link) and page.name != "404.html":
                target = (page.parent / link.partition("?")[0]).resolve()
                assert target.is_relative_to(site.resolve()) and target.exists(), f"{page.name}: {link}"


def test_nothing_is_loaded_from_other_sites(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]*\ssrc="https?:', text), page
        assert not re.search(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:', text), page


def test_a_list_after_a_paragraph_is_a_list(links):
    text = "A line:\n- one\n  more\n- two\n\n| a |\n- b\n```bash\nls\n```\n- c\n"
    changed = links.outside_code(text, lambda part: links.LIST.sub(r"\1\n\n", part))
    assert changed == "A line:\n\n- one\n  more\n- two\n\n| a |\n- b\n```bash\nls\n```\n\n- c\n"


@pytest.mark.parametrize(
    ("path", "link", "target"),
    [
        ("docs/a.md", "b.md#c", ("docs/b.md", "#c")),
        ("docs/a.md", "../CHANGELOG.md", ("CHANGELOG.md", "")),
        ("benchmarks/a.md", "../docs/b.md", ("docs/b.md", "")),
        ("docs/a.md", "https://b.org", (None, "")),
        ("docs/a.md", "#c", (None, "")),
    ],
)
def test_links_are_resolved_in_the_repository(links, path, link, target):
    assert links.resolve(path, link) == target
