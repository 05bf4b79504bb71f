"""Writing files: nothing of another program is replaced, no file is half-written, only its owner reads it."""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError
from .formats import is_known_json

# Loading processes of a run that was killed hold its lock until they see that it is gone, which takes them 5 seconds.
PATIENCE = 30.0


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed; None where another process holds it.

    None where there is no such file, too. On a system without `flock` nothing is locked, and nothing counts as held by
    somebody else. Raises OSError where it cannot be opened.
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
def only_writer(path: Path, *, what: str) -> Iterator[None]:
    """Within the block no other process writes to a file that exists, or into a folder, which is made where missing.

    A launcher that is killed leaves its processes behind, and they go on: with the same command started again two runs
    would write each other's results. what: names the work in the message. Raises UserError where another process is
    still there after `PATIENCE` seconds.
    """
    if not path.exists():
        path.mkdir(mode=0o700, parents=True)
    deadline = time.monotonic() + PATIENCE
    while (number := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: another {what} writes there: wait until it has ended, end it (a killed launcher leaves its "
                "processes behind), or give another path"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(number)


AnyPath = str | os.PathLike[str]
# The text chunk by which a picture is known as ours: `image.save(path, pnginfo=png_info())`.
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
    """Makes sure, before long work, that a file can be written to `path` without harm.

    ours: whether an existing file may be replaced, by default `is_ours`. inputs: files and folders that are read; none
    of them may be the output, and no folder among them is looked into. needs_bytes: what the disk must have free.
    Raises UserError for a folder, a device, a symbolic link, an input, a file that is not ours, and for a folder that
    cannot be written.
    """
    path = Path(path)
    _check_kind(path, inputs)
    if _exists(path) and not (ours or is_ours)(path):
        raise UserError(f"output {path}: exists and was not written by this program: move it away or {REMEDY}")
    _check_writable(path, needs_bytes)


def check_output_folder(folder: AnyPath, *, inputs: Sequence[AnyPath] = (), needs_bytes: int = 0) -> None:
    """Makes sure, before long work, that a new folder can be written: it is absent or empty.

    The folder may not lie inside a folder that is read (`inputs`). Raises UserError as `check_output` does.
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
            raise UserError(f"output {folder}: lies inside {source}, which is read: {REMEDY}")
    _check_writable(folder, needs_bytes)


def is_ours(path: AnyPath) -> bool:
    """Whether an existing file was written by this program, by what it holds: then it may be replaced.

    An empty file is nobody's. Pictures carry our name, JSON files fit one of our formats.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return True
    if path.suffix.lower() == ".png":
        return _png_software(path) == PNG_SOFTWARE
    return path.suffix.lower() == ".json" and is_known_json(path)


def png_info():
    """What `PIL.Image.save(..., pnginfo=)` takes so that the picture is known as ours."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", PNG_SOFTWARE)
    return info


# ---- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(path: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> Iterator[Path]:
    """Gives a new file next to `path` to write to, which replaces `path` after the block; on an error it is removed.

    The file is its owner's alone. What may be replaced is the caller's question (`check_output`); a folder, a device, a
    symbolic link and an input never are. Raises UserError for these, and in one line where the disk refuses.
    """
    path = Path(path)
    _check_kind(path, inputs)
    with new_parents(path), refused_by_disk(path):
        number, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        os.close(number)
        aside = Path(name)
        try:
            yield aside
            os.chmod(aside, stat.S_IRUSR | stat.S_IWUSR)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> Iterator[Path]:
    """Gives a new folder next to `folder` to write into, which becomes `folder` after the block.

    Writers of one output never mix: each has a folder of its own, and the first to finish wins. On an error the new
    folder is removed; what killed writers of the same output left is removed at the next start. All files are their
    owner's alone. Raises UserError where `folder` is there and not empty, before the block and after it, and in one
    line where the disk refuses.
    """
    folder = Path(folder)
    check_output_folder(folder, inputs=inputs)
    with new_parents(folder), refused_by_disk(folder), owner_only():
        aside, lock = _locked_folder(folder)
        try:
            yield aside
            try:
                os.rename(aside, folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise UserError(f"output {folder}: another run wrote it meanwhile: {REMEDY}") from error
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)


@contextmanager
def scratch_folder(folder: AnyPath) -> Iterator[Path]:
    """Gives a new folder next to `folder`, removed after the block; what killed runs left of it is removed first."""
    folder = Path(folder)
    with new_parents(folder), refused_by_disk(folder), owner_only():
        scratch, lock = _locked_folder(folder)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)


@contextmanager
def owner_only() -> Iterator[None]:
    """Within the block new files and folders are their owner's alone, also those that libraries make."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """The folders that `path` lies in, made where they are missing, and removed again where the block fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    made: list[Path] = []
    try:
        with refused_by_disk(path):
            for parent in reversed(missing):
                parent.mkdir(mode=0o700, exist_ok=True)
                made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            try:
                parent.rmdir()
            except OSError:  # another process has written into it
                break
        raise


@contextmanager
def refused_by_disk(path: AnyPath) -> Iterator[None]:
    """Turns what a full, missing or read-only disk raises within the block into one line that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Libraries that write from another language raise errors of their own.
        full = "No space left" in str(error)
        if not (full or isinstance(error, OSError)) or (isinstance(error, OSError) and not _is_of(error, Path(path))):
            raise
        reason = "no space left on the disk" if full else (getattr(error, "strerror", None) or str(error))
        raise UserError(f"output {path}: cannot be written ({reason}): {REMEDY}, or free space") from error


# ---- how -----------------------------------------------------------------------------------------------------------


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _check_name(path: Path) -> None:
    """Raises UserError for what no file or folder can be called."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"output {path}: cannot be written ({error.strerror}): {REMEDY}") from error
    except ValueError as error:  # NUL, or letters that no encoding has
        raise UserError(f"output {str(path)!r}: is no file name: {REMEDY}") from error


def _check_kind(path: Path, inputs: Sequence[AnyPath]) -> None:
    """Raises UserError for what no file may replace."""
    _check_name(path)
    if not path.name:
        raise UserError(f"output {str(path)!r}: is no file name: {REMEDY}")
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
            raise UserError(f"output {path}: is read as well: {REMEDY}")


def _check_writable(path: Path, needs_bytes: int) -> None:
    """Raises UserError where no file can be made where `path` is to be, or the disk has too little space."""
    # A link that leads nowhere is there: no folder can be made in its place.
    there = next((parent for parent in path.absolute().parents if _exists(parent)), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(f"output {path}: cannot be written ({error.strerror}): {REMEDY}") from error
    if free < needs_bytes:
        raise UserError(
            f"output {path}: takes {needs_bytes / 2**20:,.0f} MiB, the disk has {free / 2**20:,.0f}: free space or "
            f"{REMEDY}"
        )


def _locked_folder(folder: Path) -> tuple[Path, int]:
    """A new folder next to `folder` and the descriptor that holds its lock; removes those that nobody holds."""
    prefix, suffix = f".{folder.name[:100]}.", ".part"
    for left in folder.parent.glob(f"{_literal(prefix)}*{suffix}"):
        number = try_lock(left)
        if number is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(number)
    while True:
        aside = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
        number = try_lock(aside)
        # Another starting writer may have taken the new folder for one that nobody holds.
        if number is not None and aside.exists():
            return aside, number


def _literal(text: str) -> str:
    """The text for a glob pattern, where it matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _is_of(error: OSError, path: Path) -> bool:
    """Whether the error is of writing to `path`, not of a file that was read meanwhile."""
    if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG) or error.filename is None:
        return True
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return Path(name).absolute().is_relative_to(path.absolute().parent)


def _png_software(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software")
    except Exception:  # whatever a foreign file makes the decoder raise: it is not ours
        return None
