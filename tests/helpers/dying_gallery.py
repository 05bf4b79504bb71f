"""A process that changes a gallery until it is killed. It prints each change before it and after it."""

import json
import sys
from pathlib import Path

import numpy as np

from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo

NUMBERS, PEOPLE = 64, 60


def digest(person: int) -> str:
    """The id of a person's only row."""
    return f"{person:064x}"


def feature(person: int) -> np.ndarray:
    """The feature of a person; two people have the same one, so that there are ties."""
    return np.random.default_rng(person // 2).normal(size=NUMBERS).astype(np.float32)


def change(gallery: Gallery, random: np.random.Generator) -> None:
    """Makes one random change."""
    people = random.choice(PEOPLE, random.integers(1, 20), replace=False).tolist()
    kind = random.choice(["add", "add", "delete", "expire", "index"])
    version = int(random.integers(1000))
    print(json.dumps([kind, people, version]), flush=True)
    if kind == "add":
        rows = [{"id": digest(person), "camera_id": version} for person in people]
        gallery.add_features(np.stack([feature(person) for person in people]), rows)
    elif kind == "delete":
        gallery.delete(Where(ids=[digest(person) for person in people]))
    elif kind == "index":
        with gallery.store.writer():
            gallery.store.build_index(2)
            gallery.store.open().optimize.compact_files()
    else:
        past = CropInfo(expires="2020-01-01T00:00Z").expires
        gallery.add_features(
            np.empty((0, NUMBERS), np.float32), [], {digest(person): {"expires": past} for person in people}
        )
        gallery.expire()
    print("done", flush=True)


if __name__ == "__main__":
    opened, generator = Gallery(Path(sys.argv[1])), np.random.default_rng(int(sys.argv[2]))
    print("ready", flush=True)
    while True:
        change(opened, generator)
