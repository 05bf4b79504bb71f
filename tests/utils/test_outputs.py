"""Writing: what is not ours is never replaced, writers of one output never mix, a refusal leaves nothing."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from modeling_mllmreid.retrieval.embeddings import check_embeddings_output
from modeling_mllmreid.utils import outputs
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.outputs import (
    atomic_file,
    atomic_folder,
    check_output,
    check_output_folder,
    owner_only,
    png_info,
    scratch_folder,
    try_lock,
    write_json,
)

WORLD = {"world": "street", "version": 1}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every name under a folder, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def write(path: Path, text: str = "new", **options) -> None:
    with atomic_file(path, **options) as aside:
        aside.write_text(text)


def test_files_are_their_owners_alone(tmp_path):
    write(tmp_path / "runs" / "a" / "x.txt")
    write_json(tmp_path / "metrics.json", {})
    with atomic_folder(tmp_path / "set") as aside:
        (aside / "data").mkdir()
        (aside / "data" / "rows.txt").write_text("rows")
    paths = [p for p in tmp_path.rglob("*")]
    assert len(paths) == 7
    assert all(stat.S_IMODE(p.stat().st_mode) == (0o700 if p.is_dir() else 0o600) for p in paths)


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "device", "pipe", "input", "no name"])
def test_what_no_file_may_replace(tmp_path, kind):
    target, source = tmp_path / "target", tmp_path / "source"
    source.write_text("kept")
    match kind:
        case "folder":
            target.mkdir()
        case "link":
            target.symlink_to(source)
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case "device":
            target = Path(os.devnull)
        case "pipe":
            os.mkfifo(target)
        case "input":
            os.link(source, target)
        case "no name":
            target = Path("/")
    before = {} if kind == "pipe" else tree(tmp_path)
    for attempt in (write, check_output):
        with pytest.raises(UserError, match="^output "):
            attempt(target, inputs=[source])
    assert source.read_text() == "kept"
    assert kind == "pipe" or tree(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "metrics.json", "world.json", "sheet.png", "crop.png"])
def test_only_what_is_ours_is_replaced(tmp_path, name):
    path = tmp_path / name
    check_output(path)
    if name.endswith(".png"):
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_text('{"mine": true}')
    with pytest.raises(UserError, match="was not written by this program"):
        check_output(path)
    if name.endswith(".png"):
        Image.new("RGB", (4, 4)).save(path, pnginfo=png_info())
        check_output(path)
    if name == "world.json":
        write_json(path, WORLD)
        check_output(path)
    path.write_bytes(b"")
    check_output(path)


def test_a_failure_leaves_the_old_file_and_no_folder(tmp_path):
    path = tmp_path / "old.txt"
    path.write_text("old")
    for target in (path, tmp_path / "new" / "deep" / "file.txt"):
        with pytest.raises(KeyError), atomic_file(target) as aside:
            aside.write_text("half")
            raise KeyError("fault")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "other" / "set") as aside:
        (aside / "half").write_text("half")
        raise KeyError("fault")
    assert tree(tmp_path) == {"old.txt": b"old"}


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no space left on the disk"), atomic_file(tmp_path / "x"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match=r"takes 1,048,576 MiB, the disk has [\d,]+: free space"):
        check_output(tmp_path / "x", needs_bytes=2**40)
    # What was read meanwhile is no fault of the output.
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "x"):
        Path("/nowhere/input").read_bytes()


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file" / "below", Path("/proc/nowhere/x")):
        with pytest.raises(UserError, match="cannot be written"):
            write(path)
        with pytest.raises(UserError, match="cannot be written"):
            check_output(path)
        with pytest.raises(UserError), atomic_folder(path):
            pass
    # A link that leads nowhere is found before the work, not after it.
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    for check in (check_output, check_output_folder):
        with pytest.raises(UserError, match="cannot be written"):
            check(tmp_path / "dangling" / "x")
    for check in (check_output, check_output_folder, check_embeddings_output):
        for name, words in (
            ("a\0b", "is not a file name"),
            ("\ud800", "is not a file name"),
            ("x" * 300, "cannot be written"),
        ):
            for path in (tmp_path / name, tmp_path / name / "below"):
                with pytest.raises(UserError, match=words):
                    check(path, inputs=[tmp_path])


def test_a_new_folder_is_absent_or_empty_and_not_in_what_is_read(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(UserError, match="exists and is not empty"), atomic_folder(tmp_path / "full"):
        pass
    with pytest.raises(UserError, match="is a symbolic link"), atomic_folder(tmp_path / "link"):
        pass
    with pytest.raises(UserError, match="is inside .*full, an input"):
        check_output_folder(tmp_path / "full" / "out", inputs=[tmp_path / "full"])
    with atomic_folder(tmp_path / "empty") as aside:
        (aside / "x").write_text("x")
    assert tree(tmp_path / "empty") == {"x": b"x"}


def test_blocks_of_threads_that_overlap_keep_files_private_and_then_restore_the_mask(tmp_path):
    """As two requests of a server: the first block ends while the second one still writes."""
    before = os.umask(0o022)
    try:
        first, second = owner_only(), owner_only()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        (tmp_path / "private").touch()
        second.__exit__(None, None, None)
        (tmp_path / "public").touch()
    finally:
        after = os.umask(before)
    assert after == 0o022
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "public": 0o644}


def test_two_writers_of_a_folder_never_mix(tmp_path):
    with atomic_folder(tmp_path / "set") as first:
        (first / "first").write_text("first")
        with (
            pytest.raises(UserError, match="another run has written it in the meantime"),
            atomic_folder(tmp_path / "set") as second,
        ):
            (second / "second").write_text("second")
            os.rename(first, tmp_path / "set")  # the first one finishes
            first.mkdir()
        first.rmdir()
        os.rename(tmp_path / "set", first)
    assert tree(tmp_path) == {"set": None, "set/first": b"first"}


def test_what_a_killed_writer_left_is_removed_and_never_taken_over(tmp_path):
    code = (
        "import os, sys\nfrom modeling_mllmreid.utils.outputs import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as aside:\n    (aside / 'old').write_text('old')\n    os._exit(9)\n"
    )
    target = tmp_path / "set [1]"
    assert subprocess.run([sys.executable, "-c", code, target], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1 and not target.exists()
    with atomic_folder(target) as aside:
        (aside / "new").write_text("new")
    assert tree(tmp_path) == {"set [1]": None, "set [1]/new": b"new"}


def test_folders_of_other_users_stay(tmp_path, monkeypatch):
    """In a folder that users share, such as /tmp, the folders of another one cannot be opened."""
    other, own = tmp_path / ".set.other.part", tmp_path / ".set.own.part"
    other.mkdir()
    own.mkdir()

    def lock(path):
        if path == other:
            raise PermissionError(13, "Permission denied", str(path))
        return try_lock(path)

    monkeypatch.setattr(outputs, "try_lock", lock)
    with scratch_folder(tmp_path / "set") as scratch:
        assert scratch.is_dir() and other.exists() and not own.exists()
    assert tree(tmp_path) == {".set.other.part": None}
