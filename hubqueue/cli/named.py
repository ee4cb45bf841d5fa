"""The runs and entries that a person names. A name that fits nothing is an error with the nearest one, never "none found"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from hubqueue.cli.mistakes import nearest
from hubqueue.domain.errors import UnknownName
from hubqueue.domain.quantities import plural

if TYPE_CHECKING:
    from hubqueue.outbox.outbox import Outbox

_MOST = 8


@overload
def find_run(outbox: Outbox, given: str) -> str: ...
@overload
def find_run(outbox: Outbox, given: None) -> None: ...
@overload
def find_run(outbox: Outbox, given: str | None) -> str | None: ...
def find_run(outbox: Outbox, given: str | None) -> str | None:
    """The id of the run that was named by its id or by a unique beginning of it. Raises `UnknownName`."""
    if given is None or outbox.stats.run(given) is not None:
        return given
    known = outbox.stats.run_ids()
    found = [each for each in known if given and each.startswith(given)]
    if len(found) > 1:
        shown = ", ".join(found[:_MOST]) + (", …" if len(found) > _MOST else "")
        raise UnknownName(
            f"{plural(len(found), 'run')} begin with {given}: {shown}", hint="give more of the id"
        )
    return found[0] if found else no_run(given, known)


def no_run(given: str, known: Iterable[str] = ()) -> str:
    """Say that there is no such run. Raises `UnknownName`."""
    meant = nearest(given, known)
    hint = f"did you mean {meant}? " if meant else ""
    raise UnknownName(f"there is no run {given}", hint=f"{hint}hubqueue runs --all lists them")


def find_entries(outbox: Outbox, ids: Sequence[int]) -> list[dict[str, Any]]:
    """These entries. Raises `UnknownName` with the first that does not exist."""
    found = {row["id"]: row for row in outbox.stats.entries(ids=ids, limit=len(ids))}
    for each in ids:
        if each not in found:
            no_entry(each)
    return [found[each] for each in dict.fromkeys(ids)]


def no_entry(entry_id: int) -> None:
    """Say that there is no such entry. Raises `UnknownName`."""
    hint = "hubqueue entries lists them; delivered ones are deleted after a while"
    raise UnknownName(f"there is no entry {entry_id}", hint=hint)
