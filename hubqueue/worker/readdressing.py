"""Sends runs to another address, or with another key, than they were started for. Only a person may decide this."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from hubqueue.config.credentials import check_key
from hubqueue.config.names import did_you_mean
from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import absent
from hubqueue.domain.account import opens, origin
from hubqueue.domain.errors import ConfigError, UnknownName
from hubqueue.domain.redact import clean, safe_url
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.reach import is_about_key


@dataclass(frozen=True, slots=True)
class Move:
    """Runs that can be readdressed. `source` and `goal` describe the old and the new address in words; no repr shows the key."""

    outbox: Outbox
    runs: int
    source: str
    goal: str
    target: DestinationSettings
    key: str | None = field(repr=False)
    run_ids: Collection[str]
    names: Collection[str]

    def carry_out(self) -> int:
        """Move the runs. Returns how many were moved."""
        return self.outbox.addresses.move(self.target, self.key, run_ids=self.run_ids, names=self.names)


def log_in(outbox: Outbox, target: DestinationSettings, key: str) -> int:
    """Store a key for a destination at its address, and lift its hold. Returns how many runs now use this key.

    These are the runs of the stored key that it replaces, and those at this address whose key was refused. A `Key` where
    the destination needs several secrets; the first one decides which account it is.
    """
    before = outbox.credentials.stored(target)
    check_key(target, key)
    held = {row["name"] for row in outbox.stats.destinations() if is_about_key(row["held"])}
    theirs = [
        each.name
        for each in outbox.addresses.all()
        if each.fits(target) and each.account is not None and not opens(key, each.account)
        if each.name in held or (before is not None and opens(before, each.account))
    ]
    # Before the old key is overwritten, so that an interrupted login can be repeated.
    moved = outbox.addresses.move(target, key, names=theirs) if theirs else 0
    outbox.credentials.store(target, key)
    outbox.registry.resume(target.name)
    return moved


def moves(outbox: Outbox, names: Collection[str], *, run_id: str | None, to: str | None) -> Iterator[Move]:
    """The requested moves, each from one row of `destinations`.

    Raises `UnknownName`, and `ConfigError` also when the key of the new address cannot be read.
    """
    known = {each.name: each for each in outbox.addresses.all()}
    if run_id is not None:
        row = outbox.stats.run(run_id)
        assert row is not None, "the caller knows the run"
        source = known[row["destination"]]
        yield _move(outbox, source, to, runs=1, run_ids=[run_id], names=())
        return
    for name in names:
        if name not in known:
            guess = did_you_mean(name, known)
            hint = f"the addresses are: {', '.join(known)}"
            raise UnknownName(f"there is no address {clean(name, limit=60)}{guess}", hint=hint)
        count = outbox.addresses.runs_of(name)
        yield _move(outbox, known[name], to, runs=count, run_ids=(), names=[name])


def _move(
    outbox: Outbox,
    source: Address,
    to: str | None,
    *,
    runs: int,
    run_ids: Collection[str],
    names: Collection[str],
) -> Move:
    target = outbox.config.destination(to if to is not None else source.label)
    if target.type != source.type:
        hint = "entries that were saved for one type of destination cannot be sent to another"
        raise ConfigError(
            (f"{target.name} is of type {target.type}, {source.name} of type {source.type}",), hint=hint
        )
    if (missing := absent(target.type)) is not None:
        raise missing.error  # which of its secrets say whose account it is, nobody knows
    key = outbox.readable_key(target)
    goal = f"{target.name} ({origin(target.url)})" + ("" if key else ", which has no key yet")
    return Move(outbox, runs, f"{source.label} ({safe_url(source.url)})", goal, target, key, run_ids, names)
