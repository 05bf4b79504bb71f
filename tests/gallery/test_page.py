"""The page in a browser: search, filter, a stranger, the overlay, decisions, erasure, a narrow screen, a password."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_mllmreid.gallery.decisions import decisions
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.synthetic.write import write_pedestrians

BROWSER = shutil.which("chromium")
if BROWSER is None:
    pytest.skip("the page needs the browser chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="the page needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs playwright")
EVIL = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Four people from three cameras, and a gallery of them; the query of one has HTML in its name."""
    folder = tmp_path_factory.mktemp("page")
    world = World(7, scenes=3, cameras=3, images_per_camera=2, test_identities=4)
    write_pedestrians(folder / "world", world, captions_per_image=0, processes=1)
    images = sorted((folder / "world/bounding_box_test").glob("0*.jpg"))
    gallery = Gallery.create(folder / "gallery", "pedestrians-small")
    gallery.add([str(image) for image in images], [CropInfo(camera_id=int(i.name.split("_c")[1][0])) for i in images])
    query = folder / EVIL
    query.write_bytes(next((folder / "world/query").glob("0001_*.jpg")).read_bytes())
    return folder, gallery, query


def serving(folder, *words, **environment):
    """Starts a server; returns the process and its address."""
    command = [sys.executable, "-m", "modeling_mllmreid", "serve", "--gallery", str(folder / "gallery"), "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    process = subprocess.Popen([*command, *words], **pipes)
    found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
    assert found, process.stderr.read()
    return process, found[0].replace("0.0.0.0", "127.0.0.1")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def value(page, name):
    return page.locator(f"#{name} textarea, #{name} input").first.input_value()


def search(page, **fields):
    """Fills the form and searches; returns the result's line."""
    for name, text in fields.items():
        page.locator(f"#{name} textarea, #{name} input").first.fill(text)
    before = value(page, "verdict")
    page.click("#search")
    page.wait_for_function(
        "before => !['', before].includes(document.querySelector('#verdict textarea, #verdict input').value)",
        arg=before,
    )
    return value(page, "verdict")


def captions(page):
    page.wait_for_selector("#results .caption-label")
    return page.locator("#results .caption-label").all_inner_texts()


def expected(gallery, query, **options):
    """What the page shows of a search: rank and distance."""
    found = gallery.search(str(query), **options)
    return [f"{place}. {hit.distance:.4f}" for place, hit in enumerate(found.hits, start=1)], found


def test_the_page(people, browser):
    folder, gallery, query = people
    process, url = serving(folder)
    errors, foreign = [], []
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on("request", lambda request: foreign.append(request.url) if request.url.startswith("http") else None)
        page.goto(url)
        page.wait_for_selector("#search")

        # A photo gives the ranking of the gallery; its name is a text.
        page.locator("input[type=file]").first.set_input_files(query)
        page.wait_for_selector("text=.jpg")
        line = search(page)
        shown, found = expected(gallery, query)
        assert [text.split(",")[0] for text in captions(page)] == shown
        within = sum(not hit.beyond for hit in found.hits)
        assert line.endswith(f": {within} of the 10 nearest of {found.searched} rows.") and "threshold 0.5" in line

        # A filter changes it.
        line = search(page, cameras="2")
        shown, found = expected(gallery, query, where=Where(cameras=[2]))
        assert f"nearest of {found.searched} rows" in line or "Nobody" in line
        page.wait_for_function("count => document.querySelectorAll('#results .caption-label').length === count", arg=4)
        assert [text.split(",")[0] for text in captions(page)] == shown and len(shown) == 4

        # A click shows where both crops are alike.
        page.locator("#results .thumbnail-lg").first.click()
        page.wait_for_selector("#overlay img", timeout=60000)
        assert page.locator("#overlay img").count() == 2

        # A mistake is one line.
        page.locator("#cameras textarea, #cameras input").first.fill("two")
        page.click("#search")
        page.wait_for_selector("text=cameras 'two': give numbers, such as 1, 3")
        assert "Traceback" not in page.content() and value(page, "verdict") == ""

        # A decision is made, and taken back.
        page.get_by_role("tab", name="People").first.click()
        page.click("#group")
        page.wait_for_function("document.querySelector('#groups textarea').value.includes('groups of two or more')")
        page.wait_for_selector("#crops img")
        page.locator("#person textarea, #person input").first.fill("Ida")
        page.click("#confirm")
        page.wait_for_function("document.querySelector('#decisions textarea').value.includes('one person: Ida')")
        assert [one.person for one in decisions(gallery)] == ["Ida"]
        page.click("#undo")
        page.wait_for_function("document.querySelector('#decisions textarea').value === 'none'")

        # Erased rows are not found any more.
        page.get_by_role("tab", name="Gallery").first.click()
        page.locator("#delete-cameras textarea, #delete-cameras input").first.fill("2")
        page.click("#preview")
        page.wait_for_selector("text=Erase these 4 rows for good")
        # Other conditions: what was shown can no longer be erased.
        page.locator("#delete-conditions textarea, #delete-conditions input").first.press_sequentially("person")
        page.wait_for_selector("#erase[disabled]")
        page.click("#preview")
        page.wait_for_selector("text=where 'person': is no condition")
        assert page.locator("#erase[disabled]").count()
        page.locator("#delete-conditions textarea, #delete-conditions input").first.fill("")
        page.click("#preview")
        page.wait_for_selector("text=Erase these 4 rows for good")
        page.click("#erase")
        page.wait_for_function(
            "document.querySelector('#erased textarea, #erased input').value === '4 rows erased, traces: 0'"
        )
        page.get_by_role("tab", name="Search").first.click()
        assert search(page, cameras="2") == "No row meets the conditions."

        # The card of the model is there.
        page.get_by_role("tab", name="About").first.click()
        page.wait_for_selector("text=rendered people")

        # Everything fits a narrow screen.
        page.set_viewport_size({"width": 390, "height": 844})
        for name in ("Search", "Compare", "People", "Gallery", "About"):
            page.get_by_role("tab", name=name).first.click()
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") == 390, name
        assert errors == [] and all(address.startswith(url) for address in foreign)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0 and process.stderr.read() == ""


def test_a_stranger_is_nobody_and_a_password_is_needed(people, browser):
    folder, gallery, _ = people
    query = next((folder / "world/query").glob("0001_*.jpg"))
    gallery.delete(Where(ids=[hit.id for hit in gallery.find() if Path(hit.file_name).name.startswith("0001")]))
    assert gallery.search(str(query)).nobody
    secret = {"MLLMREID_PASSWORD": "correct horse"}
    process, url = serving(folder, "--host", "0.0.0.0", "--user", "ida", **secret)
    try:
        wrong = browser.new_context(http_credentials={"username": "ida", "password": "wrong horse"}).new_page()
        answer = wrong.goto(url)
        assert answer.status == 401 and "missing or wrong" in wrong.content() and not wrong.locator("#search").count()
        right = browser.new_context(http_credentials={"username": "ida", "password": "correct horse"}).new_page()
        right.goto(url)
        right.wait_for_selector("#search")
        right.locator("input[type=file]").first.set_input_files(query)
        right.wait_for_selector("text=.jpg")
        assert search(right).startswith("Nobody: no image of ")
        assert all("(beyond)" in text for text in captions(right))
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    lines = (folder / "gallery.audit").glob("*.jsonl")
    assert '"who": "ida"' in "".join(path.read_text() for path in lines)
