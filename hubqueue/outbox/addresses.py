"""The upload targets of runs: a row for each destination, address and account that a run was started for.

Promises: a run belongs to one row from its start on, and a worker claims only for the rows that its own configuration
and keys match (see `routes.py`). Waits that a hub asks for, and holds, are kept by row: two addresses, or two accounts
at one address, never stop each other. A row without an account is for runs that were started without a key: the first
key for its address takes them over. A destination that needs no key has only such a row.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from sqlalchemy import Connection, Table, and_, func, insert, select, text, update

from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.account import UNKNOWN, opens, seal
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.prepared import Prepared
from hubqueue.outbox.database.schema import EPOCH, destinations, lanes, runs


@dataclass(frozen=True, slots=True)
class Address:
    """One row. `name` identifies it, `label` is the name of the destination in the configuration.

    `account` is a salted hash of the key, None where there was none.
    """

    name: str
    label: str
    type: str
    url: str
    account: str | None

    @classmethod
    def of_run(cls, row: Mapping[str, Any]) -> Self:
        """The row of a run, from the result of `Stats.run`."""
        return cls(row["destination"], row["label"], row["type"], row["address"], row["account"])

    def fits(self, target: DestinationSettings) -> bool:
        """Whether a configured destination is at this address."""
        return (self.label, self.type, self.url) == (target.name, target.type, target.url)

    def is_for(self, key: str | None) -> bool:
        """Whether this is the row of runs that are started with this key.

        None is no key, `UNKNOWN` a key that could not be read.
        """
        if key is None or key == UNKNOWN:
            return self.account == key
        return self.key_among([key]) is not None

    def key_among(self, keys: Sequence[str]) -> int | None:
        """The position of the key of this account among some keys; None when it is missing."""
        if self.account is None:
            return None
        return next((at for at, key in enumerate(keys) if opens(key, self.account)), None)


class Addresses:
    """The rows of one outbox."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def all(self) -> list[Address]:
        """Every row."""
        with self.database.read() as connection:
            return _rows(connection)

    def count(self) -> int:
        """The number of rows. Rows are never deleted, so another number means new rows."""
        with self.database.read() as connection:
            ((found,),) = _COUNT.run(connection, {})
        return int(found)

    def note(self, target: DestinationSettings, key: str | None) -> str:
        """The name of the row for a destination and a key; created when it is missing.

        Runs that were started for the address without a key move to it: this is their first key.
        """
        known, takes = self.all(), key is not None and key != UNKNOWN
        found, open_to = _pick(known, target, key), _pick(known, target, None)
        if found is None or (takes and open_to is not None and self.runs_of(open_to.name)):
            with self.database.write() as tx:
                found = self._make(tx, target, key)
                if takes and open_to is not None:
                    theirs = update(runs).where(runs.c.destination == open_to.name)
                    tx.execute(theirs.values(destination=found.name))
        return found.name

    def keep(self, label: str, type: str, url: str, account: str | None) -> str:
        """The name of the row with the values of a row in another outbox; created when it is missing."""
        wanted = (label, type, url, account)
        with self.database.write() as tx:
            _alone(tx)
            for each in _rows(tx):
                if (each.label, each.type, each.url, each.account) == wanted:
                    return each.name
            return _insert(tx, *wanted).name

    def move(
        self,
        target: DestinationSettings,
        key: str | None,
        *,
        run_ids: Collection[str] = (),
        names: Collection[str] = (),
    ) -> int:
        """Give runs a new address: the named runs, or all of some rows. Returns how many. Only a person decides this.

        The leases of their lanes end, so an upload that is running to the old address can no longer be settled.
        """
        with self.database.write() as tx:
            _alone(tx, lanes)
            to = self._make(tx, target, key)
            which = and_(
                runs.c.id.in_(run_ids) if run_ids else runs.c.destination.in_(names),
                runs.c.destination != to.name,
            )
            theirs = lanes.c.run_id.in_(select(runs.c.id).where(which))
            ended = {"lease_token": lanes.c.lease_token + 1, "lease_until": EPOCH, "retry_at": EPOCH}
            tx.execute(update(lanes).where(theirs).values(ended))
            return tx.execute(update(runs).where(which).values(destination=to.name, held=None)).rowcount

    def claim_unknown(self, target: DestinationSettings, key: str) -> None:
        """Move runs whose key could not be read when they began to the key that this home has for their address."""
        theirs = [each.name for each in self.all() if each.account == UNKNOWN and each.fits(target)]
        if any(self.runs_of(name) for name in theirs):
            self.move(target, key, names=theirs)

    def runs_of(self, name: str) -> int:
        """How many runs belong to a row."""
        with self.database.read() as connection:
            return int(
                connection.scalar(select(func.count()).select_from(runs).where(runs.c.destination == name))
                or 0
            )

    def _make(self, tx: Connection, target: DestinationSettings, key: str | None) -> Address:
        _alone(tx)
        found = _pick(_rows(tx), target, key)
        if found is not None:
            return found
        account = key if key is None or key == UNKNOWN else seal(key, secrets.token_hex(8))
        return _insert(tx, target.name, target.type, target.url, account)


_COUNT = Prepared(select(func.count()).select_from(destinations))


def _alone(tx: Connection, *more: Table) -> None:
    """Exclude other homes, which could add the same row. On SQLite no other process writes during a transaction.

    Locks in the order in which a settle locks its rows: in another order the two would deadlock.
    """
    if tx.dialect.name == "postgresql":
        names = ", ".join(each.name for each in (*more, runs, destinations))
        tx.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))


def _rows(connection: Connection) -> list[Address]:
    columns = destinations.c["name", "label", "type", "url", "account"]
    return [Address(*row) for row in connection.execute(select(*columns).order_by(destinations.c.name))]


def _pick(known: Iterable[Address], target: DestinationSettings, key: str | None) -> Address | None:
    for each in known:
        if each.is_for(key) and each.fits(target):
            return each
    return None


def _insert(tx: Connection, label: str, type: str, url: str, account: str | None) -> Address:
    name = label
    if any(each.name == name for each in _rows(tx)):
        name = f"{label}@{hashlib.sha256(repr((type, url, account)).encode()).hexdigest()[:12]}"
    row = Address(name, label, type, url, account)
    tx.execute(insert(destinations).values(**asdict(row)))
    return row
