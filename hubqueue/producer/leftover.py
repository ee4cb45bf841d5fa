"""What a run still owes after `finish`, and what the hub refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.quantities import plural, size
from hubqueue.domain.redact import clean
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.reach import is_served, obstacle
from hubqueue.producer.survival import hint_of, logger

_LOG = logger()
_NOUNS = {
    Kind.REGISTRATION: "registration",
    Kind.METRICS: "metrics upload",
    Kind.CKPT: "checkpoint",
    Kind.EVENT: "message",
    Kind.COMPLETION: "end of the run",
}
_REASON = 200


@dataclass(frozen=True, slots=True)
class Leftover:
    """What has not reached the hub when `finish` returns; falsy when everything has.

    `entries` and `bytes` wait in the outbox; the worker sends them after this process has ended. `held` is the reason
    when they are on hold, else None. `dead` counts entries that the hub refused, `refused` counts them by kind,
    and `reasons` holds a few distinct reasons. `unsaved` counts metrics and checkpoints that never reached the disk,
    and `unsaved_why` is the last reason. `other_end` is the state that another process of the run, or a worker that
    took this one for dead, had set before; None when there was none.

    `by_destination` has the same for each destination of the run, by its name; the other fields are their sums, and of
    texts the first one.
    """

    entries: int = 0
    bytes: int = 0
    unsaved: int = 0
    held: str | None = None
    dead: int = 0
    reasons: tuple[str, ...] = ()
    unsaved_why: str | None = None
    refused: dict[str, int] = field(default_factory=dict, hash=False)
    other_end: str | None = None
    by_destination: dict[str, Leftover] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.entries or self.unsaved or self.dead)

    def _repr_html_(self) -> str:
        """The same for a notebook. It stays what it was when `finish` or `wait` returned."""
        if not self:
            return "<div>hubqueue: everything has arrived</div>"
        each = self.by_destination or {"": self}
        lines = "".join(
            f"<li>{escape(clean(f'to {name}: {text}' if name else text, limit=1000))}</li>"
            for name, one in each.items()
            if (text := "; ".join(_described(one, has_worker=None, known=True)[0]))
        )
        return f"<div>hubqueue, left when this was counted:<ul>{lines}</ul>now: <code>!hubqueue status</code></div>"


def added(by_destination: dict[str, Leftover]) -> Leftover:
    """What a run owes at all of its destinations."""
    each = list(by_destination.values())
    refused: Counter[str] = Counter()
    for one in each:
        refused.update(one.refused)
    return Leftover(
        entries=sum(one.entries for one in each),
        bytes=sum(one.bytes for one in each),
        unsaved=sum(one.unsaved for one in each),
        held=next((one.held for one in each if one.held is not None), None),
        dead=sum(one.dead for one in each),
        reasons=tuple(dict.fromkeys(reason for one in each for reason in one.reasons)),
        unsaved_why=next((one.unsaved_why for one in each if one.unsaved_why is not None), None),
        refused=dict(refused),
        other_end=next((one.other_end for one in each if one.other_end is not None), None),
        by_destination=by_destination,
    )


def count(outbox: Outbox, run_id: str, *, unsaved: int, why: str | None) -> Leftover:
    """Count what a run owes now. Raises the `OutboxError`s."""
    owed = outbox.stats.owed(run_id)
    refused, reasons = outbox.stats.refused(run_id)
    held = None
    if owed.entries and (row := outbox.stats.run(run_id)) is not None:
        held = (
            row["held"] or row["destination_held"] or _barred(outbox, row) or ("held" if owed.held else None)
        )
    return Leftover(
        owed.entries,
        owed.bytes,
        unsaved,
        held,
        sum(refused.values()),
        reasons,
        why if unsaved else None,
        refused,
    )


def _barred(outbox: Outbox, row: Mapping[str, Any]) -> str | None:
    """Why no process can send for a run: its key is missing here, and no worker has it. None when one can."""
    address = Address.of_run(row)
    found = obstacle(outbox, address)
    if found is None or (address.account is not None and is_served(outbox, address.name)):
        return None
    return found.what


def count_safely(outbox: Outbox | None, run_id: str | None, *, unsaved: int, why: str | None) -> Leftover:
    """Count what a run owes now, without raising: if the outbox cannot be read, at least one entry counts as unsaved."""
    if outbox is None or run_id is None:
        return Leftover(unsaved=unsaved, unsaved_why=why)
    try:
        return count(outbox, run_id, unsaved=unsaved, why=why)
    except (HubqueueError, OSError) as error:
        _LOG.warning("cannot read what is still owed: %s%s", error, hint_of(error))
        return Leftover(unsaved=max(1, unsaved), unsaved_why=why or str(error))


def describe(left: Leftover, *, has_worker: bool = True, known: bool = True) -> str:
    """One line that states what is left and what to do. Without a worker a person has to send it.

    A run that is not `known` was never saved: the status cannot show it. Of several destinations each that owes something
    is named.
    """
    several = left.by_destination if len(left.by_destination) > 1 else {}
    parts, see = _described(left, has_worker=has_worker, known=known)
    if several:
        parts = [
            f"to {name}: {'; '.join(_described(one, has_worker=has_worker, known=known)[0])}"
            for name, one in several.items()
            if one
        ]
    return "; ".join(parts) + "; see: " + " and ".join(see)


def refused(left: Leftover) -> str:
    """What a destination refused, with some of the reasons."""
    kinds = ", ".join(plural(number, _noun(kind)) for kind, number in left.refused.items())
    reasons = "; ".join(reason[:_REASON] for reason in left.reasons)
    return f"the hub refused {kinds}" + (f" ({reasons})" if reasons else "")


def lost(left: Leftover) -> str:
    """How much never reached the disk, with the last reason."""
    why = f" ({left.unsaved_why})" if left.unsaved_why else ""
    return f"{left.unsaved} could not be saved{why}"


def _described(left: Leftover, *, has_worker: bool | None, known: bool) -> tuple[list[str], list[str]]:
    """What is left, and the commands that show more of it. `has_worker` is None where that is unknown."""
    parts, see = [], []
    if left.dead:
        parts.append(refused(left))
        see.append("hubqueue entries --state dead")
    if left.entries:
        are, them = ("is", "it") if left.entries == 1 else ("are", "them")
        if left.held:
            then = f"on hold: {left.held}"
        elif has_worker is None:
            then = "saved on disk"
        elif has_worker:
            then = f"saved on disk, a worker will send {them}"
        else:
            then = f"saved on disk; no worker is running, send {them} with: hubqueue drain"
        parts.append(f"{plural(left.entries, 'upload')} ({size(left.bytes)}) {are} waiting; {then}")
    if left.unsaved:
        parts.append(lost(left))
    if left.entries or left.unsaved:
        see.append("hubqueue status" if known else "hubqueue check")
    return parts, see


def _noun(kind: str) -> str:
    return _NOUNS.get(Kind(kind), "entry") if kind in set(Kind) else "entry"
