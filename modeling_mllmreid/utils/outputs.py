"""Safe writing of files: no foreign file is replaced, no file is half-written, only the owner can read it."""

import errno
import json
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Unavailable, UserError
from .report_formats import is_known_json

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

# The loading processes of a killed run hold its lock until they notice that it ended, which takes 5 seconds.
PATIENCE = 30.0


def try_lock(path: Path) -> int | None:
    """Locks a file or folder. Returns a descriptor that holds the lock until it is closed.

    Returns None if another process holds the lock, or if the path does not exist. On a system without `flock` nothing
    is locked. Raises OSError if the path cannot be opened.
    """
    try:
        number = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        os.close(number)
        return None
    return number


@contextmanager
def only_writer(path: Path, *, work: str) -> Iterator[None]:
    """Makes this process the only writer of a file or folder within the block; a missing folder is created.

    A killed launcher leaves its processes behind: if the same command starts again, both runs would write to one place.
    work: names the work in the message. Raises Unavailable if another process still writes after `PATIENCE` seconds.
    """
    if not path.exists():
        path.mkdir(mode=0o700, parents=True)
    deadline = time.monotonic() + PATIENCE
    while (number := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{path}: another {work} writes there: wait until it has ended, end it (a killed launcher leaves its "
                "processes behind), or give another path"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(number)


AnyPath = str | os.PathLike[str]
# The text chunk that marks a picture of this package: `image.save(path, pnginfo=png_info())`.
PNG_SOFTWARE = "mllmreid"
REMEDY = "give another path"


# ---- checks before the work ----------------------------------------------------------------------------------------


def check_output(
    path: AnyPath,
    *,
    ours: Callable[[Path], bool] | None = None,
    inputs: Sequence[AnyPath] = (),
    needs_bytes: int = 0,
) -> None:
    """Checks, before long work, that a file can be written to `path` without replacing anything foreign.

    Args:
        path: The output file.
        ours: Returns whether an existing file may be replaced. Defaults to `is_ours`.
        inputs: Files and folders that are read; the output must not be one of them.
        needs_bytes: Free space that the disk must have.

    Raises:
        UserError: `path` is a folder, a device, a symbolic link, an input or a foreign file, or cannot be written.
    """
    path = Path(path)
    _check_kind(path, inputs)
    if _exists(path) and not (ours or is_ours)(path):
        raise UserError(f"output {path}: exists and was not written by this program: move it away or {REMEDY}")
    _check_writable(path, needs_bytes)


def check_new_file(path: AnyPath) -> None:
    """Checks, before long work, that a new file can be written to `path`; of existing files only an empty one may be.

    For files that people edit. Raises UserError like `check_output`.
    """
    path = Path(path)
    _check_kind(path, ())
    if _exists(path) and path.stat().st_size:
        raise UserError(f"output {path}: exists: move it away or {REMEDY}")
    _check_writable(path, 0)


def check_output_folder(folder: AnyPath, *, inputs: Sequence[AnyPath] = (), needs_bytes: int = 0) -> None:
    """Checks, before long work, that a new folder can be written: it is missing or empty, and not inside an input.

    Raises UserError like `check_output`.
    """
    folder = Path(folder)
    _check_name(folder)
    if folder.is_symlink():
        raise UserError(f"output {folder}: is a symbolic link: {REMEDY}")
    if _exists(folder) and not folder.is_dir():
        raise UserError(f"output {folder}: is a file, not a folder: {REMEDY}")
    if _exists(folder) and any(folder.iterdir()):
        raise UserError(f"output {folder}: exists and is not empty: remove it or {REMEDY}")
    for source in map(Path, inputs):
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"output {folder}: is inside {source}, an input: {REMEDY}")
    _check_writable(folder, needs_bytes)


def is_ours(path: AnyPath) -> bool:
    """Returns whether this package wrote an existing file, so that it may be replaced.

    Empty files may be replaced. Pictures carry the name of this package, JSON files have one of its formats.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return True
    if path.suffix.lower() == ".png":
        return _png_software(path) == PNG_SOFTWARE
    return path.suffix.lower() == ".json" and is_known_json(path)


def png_info() -> "PngInfo":
    """Returns the `pnginfo` for `PIL.Image.save` that marks a picture of this package."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", PNG_SOFTWARE)
    return info


# ---- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(path: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> Iterator[Path]:
    """Yields a temporary file next to `path`; after the block it replaces `path`, on an error it is removed.

    Only the owner can read the file. The caller decides whether an existing file may be replaced (`check_output`); a
    folder, a device, a symbolic link and an input are never replaced. Raises UserError for these and for a disk that
    cannot be written.
    """
    path = Path(path)
    _check_kind(path, inputs)
    with new_parents(path), refused_by_disk(path):
        number, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        os.close(number)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, stat.S_IRUSR | stat.S_IWUSR)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: AnyPath, obj: Any) -> None:
    """Writes an object as indented JSON, under a temporary name that is renamed: the file is never half-written.

    Raises ValueError for NaN or infinity, which JSON cannot store.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> Iterator[Path]:
    """Yields a temporary folder next to `folder`; after the block it is renamed to `folder`.

    Writers of one output never mix: each has its own folder, and the first to finish wins. On an error the temporary
    folder is removed; folders that killed writers left are removed at the next start. Only the owner can read the
    files. Raises UserError if `folder` is not empty, before and after the block, and if the disk cannot be written.
    """
    folder = Path(folder)
    check_output_folder(folder, inputs=inputs)
    with new_parents(folder), refused_by_disk(folder), owner_only():
        temporary, lock = _locked_folder(folder)
        try:
            yield temporary
            try:
                os.rename(temporary, folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise UserError(f"output {folder}: another run has written it in the meantime: {REMEDY}") from error
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)


@contextmanager
def scratch_folder(folder: AnyPath) -> Iterator[Path]:
    """Yields a temporary folder next to `folder` and removes it after the block, and folders of killed runs."""
    folder = Path(folder)
    with new_parents(folder), refused_by_disk(folder), owner_only():
        scratch, lock = _locked_folder(folder)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)


class _OwnerOnly:
    """The running blocks of `owner_only`. Threads share the mask of their process, so the last block restores it."""

    lock = threading.Lock()
    blocks = 0
    before = 0


@contextmanager
def owner_only() -> Iterator[None]:
    """Makes new files and folders within the block readable by their owner alone, also those of libraries.

    Blocks may overlap in threads; files that other threads make meanwhile are readable by their owner alone too.
    """
    with _OwnerOnly.lock:
        if not _OwnerOnly.blocks:
            _OwnerOnly.before = os.umask(0o077)
        _OwnerOnly.blocks += 1
    try:
        yield
    finally:
        with _OwnerOnly.lock:
            _OwnerOnly.blocks -= 1
            if not _OwnerOnly.blocks:
                os.umask(_OwnerOnly.before)


@contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Creates the missing parent folders of `path`, and removes them again if the block fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    created: list[Path] = []
    try:
        with refused_by_disk(path):
            for parent in reversed(missing):
                parent.mkdir(mode=0o700, exist_ok=True)
                created.append(parent)
        yield
    except BaseException:
        for parent in reversed(created):
            try:
                parent.rmdir()
            except OSError:  # another process has written into it
                break
        raise


@contextmanager
def refused_by_disk(path: AnyPath) -> Iterator[None]:
    """Turns the errors of a full, missing or read-only disk within the block into an Unavailable that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Libraries that write from another language raise their own errors.
        full = "No space left" in str(error)
        if not (full or isinstance(error, OSError)) or (
            isinstance(error, OSError) and not _concerns(error, Path(path))
        ):
            raise
        reason = "no space left on the disk" if full else (getattr(error, "strerror", None) or str(error))
        raise Unavailable(f"output {path}: cannot be written ({reason}): {REMEDY}, or free space") from error


# ---- helpers -------------------------------------------------------------------------------------------------------


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _check_name(path: Path) -> None:
    """Raises UserError for an impossible name of a file or folder."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"output {path}: cannot be written ({error.strerror}): {REMEDY}") from error
    except ValueError as error:  # a NUL, or characters that cannot be encoded
        raise UserError(f"output {str(path)!r}: is not a file name: {REMEDY}") from error


def _check_kind(path: Path, inputs: Sequence[AnyPath]) -> None:
    """Raises UserError if a file must not replace the path."""
    _check_name(path)
    if not path.name:
        raise UserError(f"output {str(path)!r}: is not a file name: {REMEDY}")
    mode = path.lstat().st_mode if _exists(path) else None
    if mode is not None:
        if stat.S_ISLNK(mode):
            raise UserError(f"output {path}: is a symbolic link: {REMEDY}")
        if stat.S_ISDIR(mode):
            raise UserError(f"output {path}: is a folder: give a file's path")
        if not stat.S_ISREG(mode):
            raise UserError(f"output {path}: is a device, not a file: {REMEDY}")
    for source in map(Path, inputs):
        if mode is not None and source.exists() and os.path.samefile(source, path):
            raise UserError(f"output {path}: is also an input: {REMEDY}")


def _check_writable(path: Path, needs_bytes: int) -> None:
    """Raises UserError if no file can be created at `path`, or if the disk has too little space."""
    # A broken link exists too: no folder can be created in its place.
    existing = next((parent for parent in path.absolute().parents if _exists(parent)), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise UserError(f"output {path}: cannot be written ({error.strerror}): {REMEDY}") from error
    if free < needs_bytes:
        raise UserError(
            f"output {path}: takes {needs_bytes / 2**20:,.0f} MiB, the disk has {free / 2**20:,.0f}: free space or "
            f"{REMEDY}"
        )


def _locked_folder(folder: Path) -> tuple[Path, int]:
    """Creates a temporary folder next to `folder`; returns it and its lock. Removes folders that are not locked."""
    prefix, suffix = f".{folder.name[:100]}.", ".part"
    for old in folder.parent.glob(f"{_literal(prefix)}*{suffix}"):
        try:
            number = try_lock(old)
        except PermissionError:  # another user's, in a folder that users share
            continue
        if number is not None:
            shutil.rmtree(old, ignore_errors=True)
            os.close(number)
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
        number = try_lock(temporary)
        # Another writer may have removed the new folder before it was locked.
        if number is not None and temporary.exists():
            return temporary, number


def _literal(text: str) -> str:
    """Escapes a text for a glob pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _concerns(error: OSError, path: Path) -> bool:
    """Returns whether the error comes from writing to `path`, and not from reading another file."""
    if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG) or error.filename is None:
        return True
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return Path(name).absolute().is_relative_to(path.absolute().parent)


def _png_software(path: Path) -> str | None:
    """Returns the program that wrote a picture, if the picture names it."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software")
    except Exception:  # the decoder may raise anything for a foreign file
        return None
