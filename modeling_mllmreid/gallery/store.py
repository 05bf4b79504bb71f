"""The rows of a gallery on disk or in a bucket: a Lance data set with one writer at a time."""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import pyarrow as pa

from ..utils.errors import Unavailable, UserError
from ..utils.outputs import new_parents, only_writer, refused_by_disk
from .rows import DESCRIPTIONS

# Read at the import. Its warnings on stderr are about the inside of an index.
os.environ.setdefault("LANCE_LOG", "error")
try:
    import lance
    from lance.file import LanceFileSession
except ImportError as error:
    raise ImportError("a gallery needs the extra `gallery`: pip install 'mllmreid[gallery]'") from error

ROWS = "rows.lance"
# Of Lance's file format.
STORAGE: Literal["2.1"] = "2.1"
HUB = "hf://"
ON_THE_HUB = re.compile(rf"{HUB}(datasets|models|spaces)(/[\w.-]+){{2,}}/?")
REMOTE = ("s3://", "gs://", "az://", HUB)
# In messages of Lance: no answer from a bucket, from the Hub.
UNREACHABLE = ("error sending request", "send http request")
# A place in Lance's own source.
SOURCE = re.compile(r", \S+\.rs:\d+")
# A row in the deletion's text costs 70 bytes.
IDS_AT_ONCE = 5000
# An entry of the data set's configuration: "1" between a deletion and the end of its erasure.
ERASING = "mllmreid.erasing"
# Parts of the index that a search reads.
PROBES = "mllmreid.probes"
MOST_FILES = 64
# A reader that another process's erasure overtakes opens the newest version.
ATTEMPTS = 4
# A writer of a bucket starts again if another one was faster.
COMMITS = 20
# It leaves the seeded random numbers of the process alone.
WAITING = random.SystemRandom()
Result = TypeVar("Result")


class NoGallery(Unavailable):
    """There is no data set at the place of a store."""


class Store:
    """A Lance data set of rows.

    Args:
        place (`str`): A folder, or the address of one in a bucket (s3://, gs://, az://) or on the Hub (hf://, to read).
        options (`Mapping[str, str]`, *optional*): Options of the bucket, such as `endpoint`.

    Raises:
        UserError: The address is not one of the Hub.
    """

    def __init__(self, place: str | os.PathLike[str], options: Mapping[str, str] | None = None):
        self.place = os.fspath(place)
        if self.place.startswith(HUB) and not ON_THE_HUB.fullmatch(self.place):
            raise UserError(f"gallery {self.place}: is no address on the Hub: write it as hf://datasets/OWNER/NAME")
        self.remote = self.place.startswith(REMOTE)
        self.options = dict(options or {}) or None
        self.uri = f"{self.place.rstrip('/')}/{ROWS}"
        # Lance's object cannot be read by one thread while another one moves it to a new version.
        self._own = threading.local()

    # ---- open and create -------------------------------------------------------------------------------------------

    @property
    def _data(self) -> Any:
        """The data set of this thread; None before it is opened."""
        return getattr(self._own, "data", None)

    @_data.setter
    def _data(self, data: Any) -> None:
        self._own.data = data

    def exists(self) -> bool:
        """Returns whether there is a data set. Raises Unavailable if its place cannot be read."""
        if not self.remote:
            return os.path.isdir(Path(self.place, ROWS, "_versions"))
        try:
            self.open()
        except NoGallery:
            return False
        return True

    def open(self) -> Any:
        """Returns the data set in its newest version. Raises NoGallery if there is none, Unavailable."""
        with self._errors():
            try:
                if self._data is None:
                    self._data = lance.dataset(self.uri, storage_options=self.options)
                self._data.checkout_latest()
            except ValueError as error:
                if "not found" not in str(error).lower():
                    raise
                self._data = None  # another one may take its place
                hint = "give another address" if self.place.startswith(HUB) else "create one with gallery add"
                raise NoGallery(f"gallery {self.place}: is no gallery: {hint}, or restore it") from error
        return self._data

    def create(self, schema: pa.Schema) -> None:
        """Creates an empty data set. Raises Unavailable if the place cannot be written."""
        with self._errors(writing=True), nullcontext() if self.remote else new_parents(Path(self.place, ROWS)):
            self._data = lance.write_dataset(
                schema.empty_table(),
                self.uri,
                schema=schema,
                data_storage_version=STORAGE,
                storage_options=self.options,
            )

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Makes this process the only writer of a folder within the block. In a bucket Lance repeats a lost commit."""
        self.check_writable()
        with nullcontext() if self.remote else only_writer(Path(self.place), work="gallery command"):
            yield

    def check_writable(self) -> None:
        """Raises UserError if the place can only be read, before something is done that needs to write."""
        if self.place.startswith(HUB):
            raise UserError(f"gallery {self.place}: is on the Hub and can only be read: give a folder or a bucket")

    # ---- read ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The newest version: it changes with every commit of any process."""
        return int(self.open().version)

    @property
    def schema(self) -> pa.Schema:
        """The columns, with their metadata."""
        return self.open().schema

    def size(self) -> int:
        """Returns the bytes of all files; in a bucket those of the rows alone."""
        if self.remote:
            return int(self.open().versions()[-1]["metadata"]["total_files_size"])
        size = 0
        for path in Path(self.place, ROWS).rglob("*"):
            with suppress(FileNotFoundError):  # another process may remove it in the meantime
                size += path.stat().st_size if path.is_file() else 0
        return size

    def read(self, columns: Sequence[str], ids: Sequence[str] | None = None) -> tuple[int, pa.Table]:
        """Reads columns of all rows, or of some. Returns the version and the table."""

        def table(data: Any) -> tuple[int, pa.Table]:
            if ids is None:
                return data.version, data.to_table(columns=list(columns))
            parts = [
                data.to_table(columns=list(columns), filter=_one_of(ids[start : start + IDS_AT_ONCE]))
                for start in range(0, len(ids), IDS_AT_ONCE)
            ]
            return data.version, pa.concat_tables(parts or [data.schema.empty_table().select(list(columns))])

        return self._attempt(table)

    def read_searched(self) -> tuple[int, pa.Table, np.ndarray]:
        """Reads what a search needs: the version, the columns of `DESCRIPTIONS` sorted by id, the features (N, D)."""

        def rows(data: Any) -> tuple[int, pa.Table, np.ndarray]:
            table = data.to_table(columns=list(DESCRIPTIONS)).sort_by("id")
            ids = table["id"].to_numpy()
            features = np.empty((len(ids), data.schema.field("feature").type.list_size), np.float32)
            # In pieces, so that the features are in memory once.
            for batch in data.to_batches(columns=["id", "feature"]):
                flat = batch["feature"].flatten().to_numpy(zero_copy_only=False)
                places = np.searchsorted(ids, batch["id"].to_numpy(zero_copy_only=False))
                features[places] = flat.reshape(-1, features.shape[1])
            return data.version, table, features

        return self._attempt(rows)

    def nearest(self, feature: np.ndarray, k: int, probes: int, condition: str | None = None) -> pa.Table:
        """Returns the k nearest rows that the index finds, with their features; rows without an index are compared."""
        nearest = {"column": "feature", "q": feature, "k": k, "nprobes": probes, "metric": "cosine"}
        columns = [*DESCRIPTIONS, "feature"]
        # Lance warns on stderr about a query without the distances.
        query = {"columns": [*columns, "_distance"], "nearest": nearest, "filter": condition, "prefilter": True}
        return self._attempt(lambda data: data.to_table(**query).select(columns))

    def count(self, condition: str) -> int:
        """Returns the number of rows that meet a condition."""
        return self._attempt(lambda data: int(data.count_rows(condition)))

    def probes(self) -> int | None:
        """Returns how many parts of the index a search reads; None if there is no index."""
        return self._attempt(lambda data: int(data.config()[PROBES]) if data.describe_indices() else None)

    # ---- write -----------------------------------------------------------------------------------------------------

    def merge(self, table: pa.Table, version: int | None = None) -> int | None:
        """Writes rows in one commit; rows with the same id are replaced. Returns the number of new rows.

        With a version, it returns None and changes nothing if that is not the newest any more: in a bucket Lance would
        repeat the commit over the one of another process.
        """
        return self._merge(table, version, new=True)

    def update(self, table: pa.Table, version: int) -> bool:
        """Replaces rows with the same id, as `merge` does. A row that was erased in the meantime does not come back."""
        return self._merge(table, version, new=False) is not None

    def commit(self, change: Callable[[int], Result | None]) -> Result:
        """Returns what a change returns, which starts from the newest version and gets its number.

        In a bucket, another process may be faster: the change then returns None, and starts again after a random time,
        longer at each attempt, so that one of several writers is not always the slower one. Raises Unavailable at last.
        """
        for attempt in range(COMMITS):
            if attempt:
                time.sleep(WAITING.uniform(0, min(0.005 * 2**attempt, 0.5)))
            if (result := change(self.version)) is not None:
                return result
        raise Unavailable(f"gallery {self.place}: other processes change it all the time: try again later")

    def _merge(self, table: pa.Table, version: int | None, *, new: bool) -> int | None:
        """Replaces rows, and adds new ones if this is asked for."""
        with self._errors(writing=True):
            data = self.open()
            if version is not None and data.version != version:
                return None
            merge = data.merge_insert("id").when_matched_update_all()
            merge = merge.when_not_matched_insert_all() if new else merge
            merge = merge if version is None else merge.conflict_retries(0)
            try:
                return int(merge.execute(table)["num_inserted_rows"])
            except OSError as error:
                if version is not None and "concurrent writers" in str(error):
                    return None
                raise

    def replace(self, rows: pa.RecordBatchReader) -> None:
        """Replaces all rows and columns in one commit, and erases the old ones."""
        with self._errors(writing=True):
            self.open().update_config({ERASING: "1"})
            self._data = lance.write_dataset(
                rows, self.uri, mode="overwrite", data_storage_version=STORAGE, storage_options=self.options
            )
        self.finish_erasure()

    def erase(self, ids: Sequence[str]) -> None:
        """Deletes rows, and removes their bytes from all files.

        A process that is killed in between leaves a mark, so that the next writer finishes its work.
        """
        with self._errors(writing=True):
            data = self.open()
            data.update_config({ERASING: "1"})
            for start in range(0, len(ids), IDS_AT_ONCE):
                data.delete(_one_of(ids[start : start + IDS_AT_ONCE]))
        self.finish_erasure()

    def build_index(self, partitions: int) -> None:
        """Divides the rows by k-means into an index, in place of an earlier one."""
        with self._errors(writing=True):
            data = self.open()
            data.create_index("feature", "IVF_FLAT", metric="cosine", num_partitions=partitions, replace=True)
            self._data = None

    def set_probes(self, probes: int) -> None:
        """Sets how many parts of the index a search reads."""
        with self._errors(writing=True):
            self.open().update_config({PROBES: str(probes)})

    def unfinished(self) -> bool:
        """Returns whether an erasure was interrupted."""
        with self._errors():
            return bool(self.open().config().get(ERASING) == "1")

    def finish_erasure(self) -> None:
        """Rewrites the files that hold deleted rows, and removes all older versions and files of killed writers.

        Another writer of a bucket may have files that are not committed yet: there, files of killed writers stay for
        seven days.
        """
        with self._errors(writing=True):
            data = self.open()
            # An index holds copies of the features.
            for index in data.describe_indices():
                data.drop_index(index.name)
            # The default leaves a file alone in which less than a tenth of the rows are deleted.
            data.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
            # The file of the last transaction stays. That of a deletion names the deleted ids.
            data.update_config({ERASING: "0"})
            data.cleanup_old_versions(timedelta(0), delete_unverified=not self.remote)
            data.checkout_latest()

    def tidy(self) -> None:
        """Joins the files of many additions."""
        with self._errors(writing=True):
            data = self.open()
            if len(data.get_fragments()) > MOST_FILES:
                data.optimize.compact_files()
                data.cleanup_old_versions(timedelta(0), delete_unverified=not self.remote)
                data.checkout_latest()

    # ---- files -----------------------------------------------------------------------------------------------------

    def files(self) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
        """Yields the name of each file, and a function that opens it to read."""
        if not self.remote:
            for root, _, names in os.walk(Path(self.place, ROWS)):
                for name in sorted(names):
                    path = Path(root, name)
                    yield str(path.relative_to(self.place)), partial(_open, path)
            return
        session = LanceFileSession(self.uri, storage_options=self.options)
        for name in sorted(session.list()):
            yield name, partial(_download, session, name)

    # ---- errors ----------------------------------------------------------------------------------------------------

    def _attempt(self, read: Callable[[Any], Result]) -> Result:
        """Reads from the newest version, again if another process has removed its files in the meantime."""
        for attempt in range(ATTEMPTS):
            try:
                with self._errors():
                    return read(self.open())
            except Unavailable as error:
                if attempt == ATTEMPTS - 1 or isinstance(error, NoGallery):
                    raise
                self._data = None
                time.sleep(0.05 * 4**attempt)
        raise AssertionError

    @contextmanager
    def _errors(self, *, writing: bool = False) -> Iterator[None]:
        """Turns Lance's errors into an Unavailable of one line."""
        try:
            with refused_by_disk(self.place) if writing and not self.remote else nullcontext():
                yield
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise Unavailable(f"gallery {self.place}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        """Returns what is wrong and how to fix it: Lance's message without the places in its own source."""
        if self.remote and any(sign in str(error) for sign in UNREACHABLE):
            return "cannot be reached: check the network and the address, or try again later"
        if self.place.startswith(HUB) and "PermissionDenied" in str(error):
            return "the Hub refuses to show it: run `hf auth login`, or set HF_TOKEN to a token that may read it"
        text = SOURCE.split(" ".join(str(error).split()))[0]
        if not self.remote:
            path = os.path.abspath(self.place)  # Lance leaves out its first "/"
            text = text.replace(path, path[1:]).replace(path[1:], path)
        return f"{text[:300] or type(error).__name__}: check the place, or restore a copy"


def _one_of(ids: Sequence[str]) -> str:
    """Returns the condition that the id is one of these. They are digests: nothing has to be escaped."""
    return f"id IN ({', '.join(repr(str(name)) for name in ids)})"


def _download(session: Any, name: str) -> BinaryIO:
    """Opens a copy of a file in a bucket. Its name is removed at once, its bytes when it is closed."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "file")
        session.download_file(name, str(local))
        return _open(local)


def _open(path: Path) -> BinaryIO:
    """Opens a file to read."""
    return open(path, "rb")
