"""Which runs a worker may send for: those whose address and account its own configuration and keys match.

Promises: nothing is sent to another address, or with another account, than a run was started for. After a refused key
the next ones for the same destination are tried, never an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hubqueue.config.declaration import Key
from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import absent, declaration
from hubqueue.domain.account import UNKNOWN
from hubqueue.domain.errors import CredentialsError
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Route:
    """A row of `destinations` (`name`) that this environment can send for. `keys` reads its keys for each attempt."""

    name: str
    settings: DestinationSettings
    keys: Callable[[], tuple[Key, ...]]


def routes(outbox: Outbox, *, keyless: bool = False) -> list[Route]:
    """The routes of this environment. `keyless`: runs that were started without a key need none."""
    return list(_routes(outbox, keyless))


def sendable(outbox: Outbox) -> list[Path]:
    """The locks of the rows that a worker with this environment serves or watches."""
    serves = [outbox.serving_lock(each.name) for each in routes(outbox)]
    return serves + [outbox.waiting_lock(name) for name in waiting(outbox)]


def waiting(outbox: Outbox) -> list[str]:
    """The rows at an address of this environment whose runs wait for a key: a first one, or an unreadable one."""
    targets = [each for each in _loaded(outbox) if declaration(each.type).needs_key]
    return [
        each.name
        for each in outbox.addresses.all()
        if each.account in {None, UNKNOWN} and any(map(each.fits, targets))
    ]


def _routes(outbox: Outbox, keyless: bool) -> Iterator[Route]:
    rows = outbox.addresses.all()
    for target in _loaded(outbox):
        try:
            keys = outbox.credentials.keys(target)
        except CredentialsError:
            keys = ()  # `status` and `check` report the error
        for row in (each for each in rows if each.fits(target)):
            if row.account is None and (keyless or not declaration(target.type).needs_key):
                yield Route(row.name, target, lambda: ())
            elif row.key_among(keys) is not None:
                yield Route(row.name, target, _keys(outbox, target, row))


def adopt(outbox: Outbox) -> None:
    """Assign the runs that were started without a key to this environment's account at their address."""
    rows = outbox.addresses.all()
    for target in _loaded(outbox):
        if any(each.account == UNKNOWN and each.fits(target) for each in rows) and (
            kept := stored_key(outbox, target)
        ):
            outbox.addresses.claim_unknown(target, kept)
        unkeyed = [each for each in rows if each.account is None and each.fits(target)]
        if unkeyed and any(outbox.addresses.runs_of(each.name) for each in unkeyed):
            key = outbox.key(target)
            if key is not None and key != UNKNOWN:
                outbox.addresses.note(target, key)


def _loaded(outbox: Outbox) -> list[DestinationSettings]:
    """The destinations whose declaration can be had; the runs of the others wait, and `status` says why."""
    return [each for each in outbox.config.destinations.values() if absent(each.type) is None]


def stored_key(outbox: Outbox, target: DestinationSettings) -> str | None:
    """The key that this home stores for a destination; None if there is none, or it cannot be read now."""
    try:
        return outbox.credentials.stored(target)
    except CredentialsError:
        return None


def _keys(outbox: Outbox, target: DestinationSettings, row: Address) -> Callable[[], tuple[Key, ...]]:
    def keys() -> tuple[Key, ...]:
        found = outbox.credentials.keys(target)
        at = row.key_among(found)
        return () if at is None else found[at:]

    return keys
