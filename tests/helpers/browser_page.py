"""The page of a gallery in a browser: the server in a process of its own, and a browser tab."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium")
if BROWSER is None:
    pytest.skip("the page needs the browser chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="the page needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs playwright")
USER, PASSWORD = "ida", "correct horse"


class Server:
    """The command `serve` in a process of its own."""

    def __init__(self, gallery, *words, **environment):
        command = [sys.executable, "-m", "modeling_mllmreid", "serve", "--gallery", str(gallery), "--port", "0"]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
        self.process = subprocess.Popen([*command, *words], **pipes)
        found = re.search(r"http://[\d.]+:\d+", self.process.stdout.readline())
        assert found, self.process.stderr.read()
        self.url = found[0].replace("0.0.0.0", "127.0.0.1")

    def stop(self):
        """Stops it; it has to end by itself, without a word."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0 and self.process.stderr.read() == ""


class Page:
    """A browser tab with the page; it fails where a script fails or another site is asked for something."""

    def __init__(self, browser, url, width=1200):
        credentials = {"username": USER, "password": PASSWORD}
        self.page = browser.new_context(http_credentials=credentials).new_page()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.set_default_timeout(30000)
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page.on("request", lambda request: self.errors.extend([] if self.own(request, url) else [request.url]))
        self.page.goto(url)
        self.page.wait_for_selector("#search")

    @staticmethod
    def own(request, url):
        return not request.url.startswith("http") or request.url.startswith(url)

    def tab(self, name):
        self.page.get_by_role("tab", name=name).first.click()

    def field(self, name):
        return self.page.locator(f"#{name} textarea, #{name} input").first

    def fill(self, **fields):
        for name, text in fields.items():
            self.field(name.replace("_", "-")).fill(text)

    def upload(self, name, photo):
        """Puts a photo into a field, instead of the one that is there."""
        remove = self.page.locator(f"#{name} button[aria-label='Clear']")
        if remove.count():
            remove.click()
        self.page.locator(f"#{name} input[type=file]").set_input_files(photo)
        self.page.wait_for_selector(f"#{name} .file-preview")

    def answer(self, button, name, text):
        """Clicks a button, and waits until a field has a text in its answer; returns the answer."""
        self.page.click(f"#{button}")
        field = f"#{name} textarea, #{name} input"
        wait = "([field, text]) => document.querySelector(field).value.includes(text)"
        try:
            self.page.wait_for_function(wait, arg=[field, text])
        except playwright.TimeoutError:
            pytest.fail(f"{text!r} is not in {self.field(name).input_value()!r}")
        return self.field(name).input_value()

    def captions(self, name, count):
        """Waits until a grid has a number of crops; returns the lines of each caption."""
        grid = f"#{name} .caption-label"
        wait = "([grid, count]) => document.querySelectorAll(grid).length === count"
        self.page.wait_for_function(wait, arg=[grid, count])
        return [text.split("\n") for text in self.page.locator(grid).all_inner_texts()]

    def click(self, name, place, text):
        """Clicks a crop of a grid, and waits for a text in that grid or in another one."""
        self.page.locator(f"#{name} .thumbnail-lg").nth(place).click()
        grid, _, text = text.rpartition(": ")
        self.page.locator(f"#{grid or name} .caption-label", has_text=re.compile(f"^{text}")).first.wait_for()

    def pictures(self, name):
        return [image.get_attribute("src") for image in self.page.locator(f"#{name} img").all()]

    def wait(self, script, arg=None):
        self.page.wait_for_function(script, arg=arg)
