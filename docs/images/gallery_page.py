"""Draws the picture of the page, `gallery_page.png`: a search, and where the second result and the query are alike.

python docs/images/gallery_page.py

It renders 30 people before the cameras of the test world `rendered_elsewhere`, which no model has been trained on, adds
their crops to a gallery with invented times, starts `mllmreid serve`, and searches in a browser. It needs the extras
`gallery`, `onnx` and `page`, playwright, and the browser chromium.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.synthetic.worlds import WORLDS
from modeling_mllmreid.synthetic.write import write_pedestrians

OUTPUT = Path(__file__).with_suffix(".png")
WORLD = replace(WORLDS["elsewhere"], test_identities=30, distractors=0)
QUERY, CLICKED = 107, 1  # place of the query in the sorted files; place in the ranking
START, STEP = datetime(2026, 11, 28, 8, tzinfo=UTC), timedelta(minutes=3)
SIZE = {"width": 1080, "height": 900}


def fill(folder: Path) -> tuple[Path, Path]:
    """Renders people and adds their crops to a new gallery; returns its folder and the query."""
    write_pedestrians(folder / "world", WORLD, captions_per_image=0)
    images = sorted((folder / "world/bounding_box_test").glob("0*.jpg"))
    cameras = [int(re.search(r"_c(\d+)", image.name)[1]) for image in images]
    crops = [CropInfo(camera_id=camera, time=START + place * STEP) for place, camera in enumerate(cameras)]
    Gallery.create(folder / "gallery", "pedestrians-small").add(images, crops)
    return folder / "gallery", sorted((folder / "world/query").glob("*.jpg"))[QUERY]


def draw(url: str, query: Path, output: Path) -> None:
    """Searches on the page, clicks a result, and stores what is to be seen."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.locator("#photos input[type=file]").set_input_files(query)
        page.wait_for_selector("#photos .file-preview")
        page.click("#search")
        page.locator("#results .thumbnail-lg").nth(CLICKED).click()
        page.wait_for_selector("#overlay img", timeout=60000)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # the browser draws
        page.screenshot(path=output, full_page=True)
    picture = Image.open(output).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)


def main() -> None:
    """Draws the picture."""
    with tempfile.TemporaryDirectory() as folder:
        gallery, query = fill(Path(folder))
        command = [sys.executable, "-m", "modeling_mllmreid", "serve", "--gallery", str(gallery), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                draw(re.search(r"http://\S+", server.stdout.readline())[0], query, OUTPUT)
            finally:
                server.send_signal(signal.SIGTERM)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
