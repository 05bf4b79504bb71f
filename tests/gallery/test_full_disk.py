"""A full disk: one line, no row lost, and space for the rest once there is some."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import numpy as np
from bucket_writer import NUMBERS, feature, row
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.model import EncoderSettings
from modeling_mllmreid.utils.errors import UserError

class Encoder:
    def settings(self):
        size = {"numbers": NUMBERS, "height": 8, "width": 4}
        return EncoderSettings(model="x", dtype="float32", feature="vision", weights="0" * 64, **size)

def write(numbers):
    gallery.add_features(np.stack([feature(n) for n in numbers]), [row(n) for n in numbers])

gallery = Gallery.create("disk/gallery", Encoder())
write(range(100))
try:
    write(range(100, 6100))
except UserError as error:
    print(error)
assert len(Gallery("disk/gallery").rows()) == 100
assert gallery.search(feature(7), 1, threshold=None).hits[0].id == row(7)["id"]
erased = gallery.delete(Where(cameras=[3]))
assert erased.rows == 14 and erased.traces.count == 0
gallery.expire()
write(range(100, 200))
assert len(Gallery("disk/gallery").rows()) == 186
"""


def test_a_full_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=600k tmpfs disk"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    (tmp_path / "fill.py").write_text(CODE)
    root = Path(__file__).parents[2]
    paths = f"PYTHONPATH={root}:{root / 'tests/helpers'}"
    command = f"{mount} && {paths} {sys.executable} fill.py"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no space left on the disk" in done.stdout.lower() and done.stdout.count("\n") == 1, done.stdout
