"""What a human decided about the people of a gallery: each decision is stored with its rows and can be undone."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

from ..utils.errors import NotFound, UserError
from .audit import user_name
from .gallery import Gallery
from .rows import CropInfo, utc_now

Action = Literal["confirm", "rename", "split"]
SHOWN_ID = 8
MOMENT = timedelta(microseconds=1)
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Decision:
    """A decision that is not undone.

    Args:
        id (`str`): 16 hexadecimal digits.
        time (`datetime`): When it was made.
        who (`str`): The user who made it.
        action (`str`): "confirm", "rename" or "split".
        person (`str`): The name that it gave.
        ids (`list[str]`): The rows it concerns that are still there, sorted.
    """

    id: str
    time: datetime
    who: str
    action: Action
    person: str
    ids: list[str]


def confirm(gallery: Gallery, ids: Sequence[str], person: str | None = None, *, who: str | None = None) -> Decision:
    """Decides that rows are one person.

    Args:
        gallery ([`Gallery`]): The gallery.
        ids (`Sequence[str]`): The rows.
        person (`str`, *optional*): The name; by default the one that some of the rows have, or a new one.
        who (`str`, *optional*): The user who decides; by default the one who runs this process.

    Returns:
        [`Decision`]

    Raises:
        UserError: There is no row, one is not in the gallery, or they have other names.
    """

    given = _given(person)

    def name(rows: Rows) -> str | None:
        names = sorted({row["person"] for row in rows if row["person"]} - {given})
        if len(names) > (given is None):
            raise UserError(
                f"confirm: the rows have {'the names' if len(names) > 1 else 'the name'} "
                f"{', '.join(map(repr, names[:5]))}: rename these people first, or split the rows"
            )
        return given or next(iter(names), None)

    return _decide(gallery, "confirm", lambda: ids, name, who)


def rename(gallery: Gallery, person: str, new: str, *, who: str | None = None) -> Decision:
    """Gives a person another name. If other rows have that name, all of them are one person then.

    Args:
        gallery ([`Gallery`]): The gallery.
        person (`str`): The name until now.
        new (`str`): The new name.
        who (`str`, *optional*): The user who decides.

    Returns:
        [`Decision`]

    Raises:
        UserError: No row has the name, the new one is empty, or both are equal.
    """
    given = _given(new)
    if given is None:
        raise UserError(f"rename: {new!r} is no name: give one")
    if person == given:
        raise UserError(f"rename: {person!r} is the name already: give another one")

    def ids() -> list[str]:
        rows = gallery.rows()
        if person not in rows.columns["person"]:
            known = sorted({name for name in rows.columns["person"] if name})
            listed = f": the names are {', '.join(map(repr, known[:10]))}" if known else ""
            raise UserError(f"rename: no row has the name {person!r}{listed}")
        return list(rows.ids[rows.columns["person"] == person])

    return _decide(gallery, "rename", ids, lambda _: given, who)


def split(gallery: Gallery, ids: Sequence[str], person: str | None = None, *, who: str | None = None) -> Decision:
    """Decides that rows are another person than the one whose name they have.

    Args:
        gallery ([`Gallery`]): The gallery.
        ids (`Sequence[str]`): Some of the rows of one person.
        person (`str`, *optional*): Their new name; by default one is made up.
        who (`str`, *optional*): The user who decides.

    Returns:
        [`Decision`]

    Raises:
        UserError: A row is not in the gallery, the rows do not have one name, no other row has it, or the new name is
            the same.
    """

    given = _given(person)

    def name(rows: Rows) -> str | None:
        names = {row["person"] for row in rows}
        if len(names) != 1 or None in names:
            raise UserError("split: the rows do not have one name: choose rows of one named person")
        (old,) = names
        everybody = gallery.rows()
        if sum(other == old for other in everybody.columns["person"]) == len(rows):
            raise UserError(f"split: these are all rows of {old!r}: use rename to give another name")
        if given == old:
            raise UserError(f"split: {old!r} is the name that the rows have: give another one")
        return given

    return _decide(gallery, "split", lambda: ids, name, who)


def undo(gallery: Gallery, decision: str | None = None) -> Decision:
    """Takes a decision back: its rows get the names that they had before.

    Args:
        gallery ([`Gallery`]): The gallery.
        decision (`str`, *optional*): Its id; by default the newest.

    Returns:
        [`Decision`]: The decision that was undone.

    Raises:
        UserError: There is no such decision, or its rows were changed afterwards.
    """

    def undone() -> tuple[Decision, pa.Table]:
        made = decisions(gallery)
        found = made[-1:] if decision is None else [one for one in made if one.id == decision]
        if not found:
            raise UserError(
                "undo: there is no decision" + (f" {decision!r}: gallery decisions lists them" if decision else "")
            )
        table, rows = _read(gallery, found[0].ids)
        stacks = [json.loads(row["decisions"]) for row in rows]
        later = Counter(stack[-1]["id"] for stack in stacks) - Counter({found[0].id: len(stacks)})
        if later:
            ((last, count),) = later.most_common(1)
            raise UserError(f"undo {found[0].id}: decision {last} changed {count} of its rows later: undo that first")
        changed = sum(row["person"] != stack[-1]["after"] for row, stack in zip(rows, stacks, strict=True))
        if changed:
            raise UserError(f"undo {found[0].id}: {changed} of its rows got another name from add later: rename them")
        for row, stack in zip(rows, stacks, strict=True):
            row |= {"person": stack.pop()["before"], "decisions": json.dumps(stack) if stack else ""}
        return found[0], pa.Table.from_pylist(rows, schema=table.schema)

    return _commit(gallery, undone)


def decisions(gallery: Gallery) -> list[Decision]:
    """Returns the decisions that are not undone and whose rows are not all erased, oldest first."""
    _, table = gallery.store.read(["id", "decisions"])
    entries: dict[str, dict[str, Any]] = {}
    ids: dict[str, list[str]] = {}
    for name, text in zip(table["id"].to_pylist(), table["decisions"].to_pylist(), strict=True):
        for entry in json.loads(text) if text else ():
            entries[entry["id"]] = entry
            ids.setdefault(entry["id"], []).append(name)
    made = [
        Decision(
            key, datetime.fromisoformat(entry["time"]), entry["who"], entry["action"], entry["after"], sorted(ids[key])
        )
        for key, entry in entries.items()
    ]
    return sorted(made, key=lambda one: (one.time, one.id))


def _decide(
    gallery: Gallery,
    action: Action,
    ids: Callable[[], Sequence[str]],
    name: Callable[[Rows], str | None],
    who: str | None,
) -> Decision:
    """Gives rows a name in one commit, with an entry on each of them from which it can be undone."""
    key = uuid.uuid4().hex[:16]

    def decided() -> tuple[Decision, pa.Table]:
        table, rows = _read(gallery, ids())
        # The name is checked as that of `add` is.
        person = CropInfo(person=name(rows)).person or f"person {key[:SHOWN_ID]}"
        stacks = [json.loads(row["decisions"] or "[]") for row in rows]
        # Later than those below it, whatever the clock says: the newest decision can always be undone.
        times = [datetime.fromisoformat(stack[-1]["time"]) + MOMENT for stack in stacks if stack]
        made = Decision(key, max([utc_now(), *times]), who or user_name(), action, person, [row["id"] for row in rows])
        entry = {"id": key, "time": made.time.isoformat(), "who": made.who, "action": action, "after": person}
        for row, stack in zip(rows, stacks, strict=True):
            row["decisions"] = json.dumps([*stack, {**entry, "before": row["person"]}])
            row["person"] = person
        return made, pa.Table.from_pylist(rows, schema=table.schema)

    return _commit(gallery, decided)


def _commit(gallery: Gallery, change: Callable[[], tuple[Decision, pa.Table]]) -> Decision:
    """Writes the rows that `change` returns; computes them again if another process has changed the gallery."""

    def committed(version: int) -> Decision | None:
        try:
            decision, table = change()
        except (LookupError, ValueError):
            if gallery.store.version == version:
                raise
            return None  # it has read rows of two versions
        if not gallery.store.update(table, version):
            return None
        gallery.store.tidy()
        return decision

    with gallery.store.writer():
        return gallery.store.commit(committed)


def _given(person: str | None) -> str | None:
    """Returns a name without the space around it; None if nothing is left."""
    return (person or "").strip() or None


def _read(gallery: Gallery, ids: Sequence[str]) -> tuple[pa.Table, Rows]:
    """Returns rows with all columns. Raises UserError if there is none or one is missing."""
    wanted = sorted(set(ids))
    if not wanted:
        raise UserError("no row is chosen: give conditions that rows meet, or groups of a file of `gallery groups`")
    there = set(gallery.rows().ids)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise NotFound(
            f"{len(missing)} of {len(wanted)} rows are not in the gallery, the first is {missing[0][:16]}: they were "
            "erased, or are of another gallery"
        )
    _, table = gallery.store.read(gallery.store.schema.names, wanted)
    rows: Rows = table.sort_by("id").to_pylist()
    return table, rows
