"""Which run is meant: by its name at the destination, or by its id or name in the outbox of this home."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hubqueue.domain.errors import NotThere, OutboxError, UnknownName, ambiguous
from hubqueue.domain.identifier import default_name
from hubqueue.domain.redact import clean
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredRun
from hubqueue.retrieval.source import Source

if TYPE_CHECKING:
    from hubqueue.outbox.outbox import Outbox

_MOST_NAMED = 3


def find(
    source: Source, given: str, outbox: Callable[[], Outbox | None]
) -> tuple[str, tuple[StoredCheckpoint, ...]]:
    """The name of a run at the destination, and its checkpoints. `outbox` is called if the destination has no such name.

    Raises `UnknownName` for an id that begins several runs, or a name that another home has as well, `NotThere` with close names as the hint, and
    `DestinationUnavailable`.
    """
    with suppress(NotThere):
        checkpoints = source.checkpoints(given)
        _refuse_other_home(source, given, outbox)
        return given, checkpoints
    meant = list(_meant(_rows(outbox()), given, source.target.name))
    for name in (name for row in meant for name in names_of(row)):
        with suppress(NotThere):
            return name, source.checkpoints(name)
    there, ids = source.runs(), {given, *(row["id"] for row in meant)}
    if found := next((each for each in there if each.id in ids), None):
        return found.name, source.checkpoints(found.name)
    raise _not_there(source, given, there)


def local_id(source: Source, outbox: Outbox | None, name: str) -> str | None:
    """The id in this outbox of the run that has this name at a destination; None if it has none."""
    rows = [row for row in _rows(outbox) if row["label"] == source.target.name]
    if found := next((row["id"] for row in rows if row["remote_id"] == name), None):
        return str(found)
    called = _called(rows, name)
    if not called:
        return None
    stored = _id_at(source, name)
    if stored is None:
        return next((row["id"] for row in called if name in names_of(row)), None)
    return next((row["id"] for row in called if stored in (row["id"], row["remote_id"])), None)


def _refuse_other_home(source: Source, name: str, outbox: Callable[[], Outbox | None]) -> None:
    """Raise `UnknownName` if this outbox has a run of this name, and the destination has one of another home."""
    try:
        opened = outbox()
        ours = _called((row for row in _rows(opened) if row["label"] == source.target.name), name)
        if not ours or local_id(source, opened, name) is not None:
            return
    except (OutboxError, OSError):
        return  # a damaged one must not prevent a pull
    stored = _id_at(source, name)
    other = f"--run {clean(stored, limit=80)} means that one, " if stored else ""
    raise UnknownName(
        f"{clean(name, limit=80)} at {source.target.name} is not the run of this home with that name",
        hint=f"{other}--run {ours[0]['id']} the one of this home",
    )


def _called(rows: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The runs that the training has given this name, or that have it because it has given none."""
    return [row for row in rows if name in (row["name"], default_name(row["model"], row["id"]))]


def _id_at(source: Source, name: str) -> str | None:
    """The id that a destination states of the newest run with this name."""
    return next((each.id for each in reversed(source.runs()) if each.name == name), None)


def names_of(row: Mapping[str, Any]) -> list[str]:
    """The names that a run of this outbox may have at a destination: the one that it gave, if that is known."""
    given = row["remote_id"]
    if given and given != row["id"]:
        return [given]
    return [each for each in (given, row["name"], default_name(row["model"], row["id"])) if each]


def _rows(outbox: Outbox | None) -> Sequence[Mapping[str, Any]]:
    return [] if outbox is None else outbox.stats.called()


def _meant(rows: Sequence[Mapping[str, Any]], given: str, destination: str) -> Iterator[Mapping[str, Any]]:
    """The runs of this outbox at a destination that an id, the beginning of one, or a name means, newest first.

    A training at several destinations has a run at each: the id of any of them means the one at this destination.
    """
    named = [row for row in rows if given in (row["id"], row["name"])]
    if not named and given:
        named = [row for row in rows if row["id"].startswith(given)]
        if len({row["together"] or row["id"] for row in named}) > 1:
            raise ambiguous(given, [row["id"] for row in named])
    trainings = {row["together"] or row["id"] for row in named}
    for row in rows:
        if row["label"] == destination and (row["together"] or row["id"]) in trainings:
            yield row


def _not_there(source: Source, given: str, there: Iterable[StoredRun]) -> NotThere:
    names = [each.name for each in there]
    longer = [name for name in names if given and name.startswith(given)]
    close = longer or difflib.get_close_matches(given, names, _MOST_NAMED, 0.5)
    lists = f"hubqueue pull {source.target.name} --list shows its runs"
    meant = ", ".join(clean(name, limit=80) for name in close[:_MOST_NAMED])
    hint = f"did you mean {meant}? {lists}" if meant else lists
    return NotThere(f"{source.target.name} has no run {clean(given, limit=80)!r}", hint=hint)
