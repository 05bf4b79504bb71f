"""What the writers of generated texts share: provenance, parts for several processes, batches that survive a kill."""

import os
from collections.abc import Callable, Mapping, Sequence
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


class Sidecar:
    """One file of records that several processes write: each into a part of its own, joined before and after the work.

    A context: within it no other run writes to the file. path: the file. kind: the records' class. provenance: what
    every record must have been written with. inputs: files that are read, none of which may be the file.
    Raises UserError, before anything is written, where the file was written otherwise, holds anything else than
    records, is written by another run, or cannot be written.
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
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with self._held as held:
            on_main(self._begin)
            self.records = read_records(self.path, self.kind)
            self._check_provenance()
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    @property
    def _own(self) -> Path:
        """Where this process writes: the file itself where it is alone."""
        rank = self.state.process_index
        alone = self.state.num_processes == 1
        return self.path if alone else self.path.with_name(f"{self.path.name}.part-{rank:05d}")

    def append(self, records: Sequence[Any]) -> None:
        """Puts these records on disk."""
        append_records(self._own, records)

    def write(
        self, queue: Sequence[Item], batch_size: int, write_batch: Callable[[Sequence[Item]], None], what: str
    ) -> None:
        """Hands this process's share of the queue to `write_batch`, batch by batch; returns when all have done theirs.

        The order is the queue's, so that after a kill the same batches come again.
        """
        batches = [queue[start : start + batch_size] for start in range(0, len(queue), batch_size)]
        mine = batches[self.state.process_index :: self.state.num_processes]
        with tqdm(total=sum(map(len, mine)), desc=f"{what}s", unit=what, disable=None) as progress:
            for batch in mine:
                write_batch(batch)
                progress.update(len(batch))
        # One process may be hours behind another: the default group would give up on it.
        raise_together(None)
        on_main(self._join_parts)

    def _begin(self) -> None:
        """A bad path must fail before the hours of generation."""
        check_output(self.path, ours=lambda path: is_sidecar(path, self.kind), inputs=self.inputs)
        self._held.enter_context(new_parents(self.path))
        with refused_by_disk(self.path):
            append_records(self.path, [])
        lock = try_lock(self.path)
        if lock is None:
            raise UserError(f"{self.path}: another run writes there: wait until it has ended, or give another file")
        self._held.callback(os.close, lock)
        self._held.callback(self._remove_empty)
        self._join_parts()

    def _remove_empty(self) -> None:
        """Where nothing was written, nothing stays."""
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    def _join_parts(self) -> None:
        """Appends what the parts hold to the file, each record once, and removes them."""
        parts = sorted(self.path.parent.glob(f"{self.path.name}.part-*"))
        if not parts:
            return
        known = {record.key for record in read_records(self.path, self.kind)}
        for part in parts:
            records = [record for record in read_records(part, self.kind) if record.key not in known]
            append_records(self.path, records)
            known |= {record.key for record in records}
            part.unlink()

    def _check_provenance(self) -> None:
        for record in self.records:
            if record.provenance != self.provenance:
                names = sorted(self.provenance.keys() | record.provenance.keys())
                name = next(n for n in names if record.provenance.get(n) != self.provenance.get(n))
                raise UserError(
                    f"{self.path}: holds texts written with {name} {record.provenance.get(name)!r}, not "
                    f"{self.provenance.get(name)!r}: give another file, the same settings, or remove the file"
                )
