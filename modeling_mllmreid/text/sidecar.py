"""The sidecar file of generated texts: provenance, partial files of several processes, batches that survive a kill."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from tqdm import tqdm

from ..data.captions import CaptionRecord, TextRecord, append_records, is_sidecar, read_records
from ..utils.errors import UserError
from ..utils.outputs import check_output, new_parents, refused_by_disk, try_lock
from ..utils.processes import on_main, raise_together, this_process

Record = TypeVar("Record", CaptionRecord, TextRecord)
Item = TypeVar("Item")
Text = TypeVar("Text")


class Sidecar:
    """A file of records that several processes write: each has a partial file; they are joined before and after.

    As a context manager it locks the file against other runs.

    Args:
        path (`str` or `os.PathLike`): The file.
        kind (`type`): Class of the records.
        provenance (`Mapping[str, Any]`): The provenance that every record must have.
        inputs (`Sequence`): Input files; `path` must not be one of them.

    Raises:
        UserError: On entry, for a file with other provenance or other content, one that another run writes, and one
            that cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: type,
        provenance: Mapping[str, Any],
        inputs: Sequence[str | os.PathLike[str]] = (),
    ):
        self.path, self.kind, self.provenance, self.inputs = Path(path), kind, dict(provenance), inputs
        self.state = this_process()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with self._resources as resources:
            on_main(self._begin)
            self.records = read_records(self.path, self.kind)
            self._check_provenance()
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._resources.__exit__(*error)

    @property
    def _own_path(self) -> Path:
        """The file that this process writes: the sidecar itself if there is one process."""
        rank = self.state.process_index
        alone = self.state.num_processes == 1
        return self.path if alone else self.path.with_name(f"{self.path.name}.part-{rank:05d}")

    def append(self, records: Sequence[Any]) -> None:
        """Writes records to disk."""
        append_records(self._own_path, records)

    def write(
        self,
        queue: Sequence[Item],
        batch_size: int,
        texts_of: Callable[[list[Sequence[Item]]], Iterator[list[tuple[Item, Text]]]],
        records_of: Callable[[Item, Text], Sequence[Record]],
        unit: str,
    ) -> None:
        """Writes the records of this process's share; returns when all processes are finished.

        Batches follow the order of the queue, so that a resumed run has the same batches.

        Args:
            queue (`Sequence`): Items without a text.
            batch_size (`int`): Items in a batch.
            texts_of (`Callable`): Yields items and their texts for a list of batches; each yield is on disk at once.
            records_of (`Callable`): Returns the records of an item and its text.
            unit (`str`): The name of an item, for the progress bar.
        """
        batches = [queue[start : start + batch_size] for start in range(0, len(queue), batch_size)]
        own_batches = batches[self.state.process_index :: self.state.num_processes]
        with tqdm(total=sum(map(len, own_batches)), desc=f"{unit}s", unit=unit, disable=None) as progress:
            for texts in texts_of(own_batches):
                self.append([record for item, text in texts for record in records_of(item, text)])
                progress.update(len(texts))
        # One process may be hours behind another: the default group would time out.
        raise_together(None)
        on_main(self._join_partial_files)

    def _begin(self) -> None:
        """Checks, locks and joins the file before hours of generation."""
        check_output(self.path, ours=lambda path: is_sidecar(path, self.kind), inputs=self.inputs)
        self._resources.enter_context(new_parents(self.path))
        with refused_by_disk(self.path):
            append_records(self.path, [])
        lock = try_lock(self.path)
        if lock is None:
            raise UserError(f"{self.path}: another run writes there: wait until it has ended, or give another file")
        self._resources.callback(os.close, lock)
        self._resources.callback(self._remove_empty)
        self._join_partial_files()

    def _remove_empty(self) -> None:
        """Removes the file if no record is written."""
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    def _join_partial_files(self) -> None:
        """Appends the records of the partial files, each once, and removes these files."""
        partial_files = sorted(self.path.parent.glob(f"{self.path.name}.part-*"))
        if not partial_files:
            return
        known = {record.key for record in read_records(self.path, self.kind)}
        for partial in partial_files:
            records = [record for record in read_records(partial, self.kind) if record.key not in known]
            append_records(self.path, records)
            known |= {record.key for record in records}
            partial.unlink()

    def _check_provenance(self) -> None:
        """Raises UserError for a record with other provenance."""
        for record in self.records:
            if record.provenance != self.provenance:
                names = sorted(self.provenance.keys() | record.provenance.keys())
                name = next(n for n in names if record.provenance.get(n) != self.provenance.get(n))
                raise UserError(
                    f"{self.path}: holds texts written with {name} {record.provenance.get(name)!r}, not "
                    f"{self.provenance.get(name)!r}: give another file, the same settings, or remove the file"
                )
