"""A gallery on the Hub, `hf://`: it is read as any other, and never written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer, Repo

from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.rows import CropInfo

ADDRESS, READ_ONLY = "hf://datasets/owner/people", "is on the Hub and can only be read: give a folder or a bucket"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def published(hub, tmp_path, crops):
    """A gallery in a folder, the images, and the same files in a private data set of the Hub."""
    images = crops(12)
    gallery = Gallery.create(tmp_path / "gallery", "pedestrians-small")
    gallery.add(images, [CropInfo(camera_id=n % 3, person="Ida" if n == 5 else None) for n in range(12)])
    root = Path(gallery.store.place)
    repo = hub.repos["datasets", "owner/people"] = Repo(f"{hub.url}/datasets/owner/people", private=True)
    repo.commit({path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    return gallery, images


@pytest.fixture
def command(hub, tmp_path):
    """Returns a function that runs a command of the gallery; Lance reads the address of the Hub at its start."""
    work = tmp_path / "work"
    work.mkdir()
    own = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def run(*argv, address=ADDRESS, token=TOKEN, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= own | hub.environment(tmp_path / "home", token) | variables
        name, *rest = argv
        line = [sys.executable, "-m", "modeling_mllmreid", "gallery", name, "--gallery", address, *rest]
        return subprocess.run(line, cwd=work, env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_it_is_read(published, command, tmp_path):
    gallery, images = published
    info = command("info")
    assert info.returncode == 0, info.stderr
    assert info.stdout.startswith("rows      12 (0 expired), 1 named persons\n")
    found = command("search", "--query", images[3], "--cameras", "0", "1", "--top_k", "4")
    assert found.returncode == 0, found.stderr
    names = [word for word in found.stdout.split() if word.endswith(".png")]
    assert names == [hit.file_name for hit in gallery.search(images[3], 4, where=Where(cameras=[0, 1])).hits]
    grouped = command("groups")
    assert grouped.returncode == 0 and "12 rows" in grouped.stdout, grouped
    exported = command("export", "--output", str(tmp_path / "rows.json"), "--where", "person=Ida")
    assert exported.returncode == 0, exported.stderr
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["file_name"], row["person"]) == (images[5], "Ida")


def test_the_token_of_hf_auth_login_is_used(published, command, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    assert command("info", token=None).stdout.startswith("rows      12")


@pytest.mark.parametrize(
    "argv",
    [
        ("add", "--images", "IMAGES"),
        ("add", "--images", "IMAGES", "--model", "pedestrians-small"),
        ("delete", "--where", "person=Ida", "--confirm", "true"),
        ("expire",),
        ("confirm", "--where", "camera_id=0"),
        ("rename", "--person", "Ida", "--new", "Eva"),
        ("reembed", "--model", "pedestrians-small"),
    ],
    ids=lambda argv: " ".join(argv[:3]),
)
def test_it_is_not_written(published, hub, command, argv):
    _, images = published
    hub.seen.clear()
    done = command(*[str(Path(images[0]).parent) if part == "IMAGES" else part for part in argv])
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: gallery {ADDRESS}: {READ_ONLY}"]
    assert "added" not in done.stdout and "erased" not in done.stdout
    # Only reading was asked for.
    assert set(hub.seen) <= {"GET tree", "GET resolve", "HEAD resolve", "POST paths"}
    assert len(hub.repos["datasets", "owner/people"].commits) == 2


def test_a_hub_that_cannot_be_reached(command):
    done = command("info", HF_ENDPOINT="http://127.0.0.1:9")
    message = f"error: gallery {ADDRESS}: cannot be reached: check the network and the address, or try again later"
    assert (done.returncode, done.stderr.splitlines()) == (2, [message])


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        ("hf://datasets/owner/nobody", TOKEN, "is no gallery: give another address, or restore it"),
        (ADDRESS, None, "the Hub refuses to show it: run `hf auth login`, or set HF_TOKEN to a token that may read it"),
        ("hf://datasets/owner", TOKEN, "is no address on the Hub: write it as hf://datasets/OWNER/NAME"),
    ],
)
def test_mistakes(published, command, address, token, message):
    done = command("info", address=address, token=token)
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: gallery {address}: {message}"])
