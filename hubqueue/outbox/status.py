"""The status: everything a person or a program needs to know of an outbox, as one dictionary (see docs/status.md).

Correct also when every other process is dead: a worker or a training process lives while it holds its lock, which the
kernel releases with the process. What it once wrote does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.redact import clean, harmless, link
from hubqueue.outbox import exits, presence
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.attention import aside, is_barred, is_shared, needs_a_person, unanswered
from hubqueue.outbox.database.schema import EPOCH, PROBES_AT
from hubqueue.outbox.database.sqlite import asides
from hubqueue.outbox.locks import is_held
from hubqueue.outbox.reach import is_served, obstacle
from hubqueue.outbox.runs import COUNTED
from hubqueue.outbox.trainings import RunIds
from hubqueue.outbox.uploads import upload_of

if TYPE_CHECKING:
    from hubqueue.config.home import Home
    from hubqueue.config.reader import Config
    from hubqueue.outbox.opened import Opened

_NO_WORKER = {
    "alive": False,
    "id": None,
    "pid": None,
    "host": None,
    "started_at": None,
    "seen_at": None,
    "starting": False,
}
# How long a worker may need to appear after the start of its training.
_STARTING = timedelta(seconds=10)
_LANE_COUNTS = (
    "pending",
    "in_flight",
    "retrying",
    "delivered",
    "dead",
    "superseded",
    "cancelled",
    "bytes",
    "attempts",
)


def status(outbox: Opened, *, run_id: RunIds = None, finished: int | None = 10) -> dict[str, Any]:
    """The status of an outbox, or of some of its runs (the totals stay those of the outbox).

    Of the runs that owe nothing the `finished` newest are shown (None: all).
    """
    now = outbox.database.now()
    totals = outbox.stats.totals()
    worker, found = _worker(outbox, now), _destinations(outbox, now)
    barred = set() if is_shared(outbox, worker) else {each["address"] for each in found if is_barred(each)}
    destinations = [harmless(each) for each in found]
    failed = {each for exit in exits.reported(outbox.home.locks) if exit.code for each in exit.runs}
    runs = [
        harmless(_run(outbox, row, now, failed, sendable=row["destination"] not in barred))
        for row in outbox.stats.runs(run_id=run_id, finished=finished)
    ]
    worker["starting"] = not worker["alive"] and _starts(outbox, runs, now)
    for destination in destinations:
        failing = _failing(outbox, destination["address"]) if totals["pending"] else (None, None)
        destination["failing_since"], destination["last_error"] = failing
    attention = needs_a_person(outbox, totals, destinations, runs, worker)
    return {
        "healthy": not attention,
        "attention": attention,
        "outbox": outbox.database.describe(),
        "spool": {
            "path": str(outbox.spool.path),
            "bytes": outbox.spool.bytes_used(),
            "max_bytes": outbox.config.spool.max_bytes,
            "free_bytes": outbox.spool.free_bytes(),
        },
        "worker": worker,
        "totals": totals,
        "destinations": destinations,
        "runs": runs,
    }


def nothing_yet(home: Home, config: Config) -> dict[str, Any]:
    """The status of a home without an outbox. It creates none."""
    damaged = [aside(path) for path in asides(home.outbox)]
    return {
        "healthy": not damaged,
        "attention": damaged,
        "outbox": {
            "url": f"sqlite:///{home.outbox}",
            "backend": "sqlite",
            "version": None,
            "journal_mode": None,
            "synchronous": None,
            "bytes": 0,
            "read_only": home.read_only,
            "revision": None,
        },
        "spool": {
            "path": str(config.spool.path or home.spool),
            "bytes": 0,
            "max_bytes": config.spool.max_bytes,
            "free_bytes": None,
        },
        "worker": dict(_NO_WORKER),
        "totals": dict.fromkeys((*COUNTED, "in_flight", "retrying"), 0),
        "destinations": [],
        "runs": [],
    }


def _worker(outbox: Opened, now: datetime) -> dict[str, Any]:
    newest = dict(_NO_WORKER)
    for row in outbox.stats.workers():
        shown = {
            "alive": _lives(outbox, row, now),
            "id": row["id"],
            "pid": row["pid"],
            "host": harmless(row["host"]),
            "started_at": _shown(outbox, row["started_at"]),
            "seen_at": _shown(outbox, row["seen_at"]),
        }
        if shown["alive"]:
            return shown
        newest = newest if newest["id"] else shown
    return newest


def _starts(outbox: Opened, runs: list[dict[str, Any]], now: datetime) -> bool:
    """Whether a worker is starting: it has its lock before it is on the list, or a training has just begun.

    For a training that starts no worker this is wrong, in its first seconds.
    """
    workers = outbox.stats.workers()
    listed = {outbox.worker_lock(row["id"]) for row in workers}
    if any(is_held(lock) for lock in outbox.home.locks.glob("worker-*.lock") if lock not in listed):
        return True
    # A dead worker on the list has started since then, and does not restart automatically.
    since = max([now - _STARTING, *(row["started_at"] for row in workers)])
    newest = outbox.database.to_wall(since).isoformat()
    return any(
        run["state"] == RunState.RUNNING
        and run["created_at"] > newest
        and presence.lives(outbox.run_lock(run["id"]))
        for run in runs
    )


def _failing(outbox: Opened, destination: str) -> tuple[str | None, str | None]:
    """Since when every attempt at a destination fails, and the reason of the last one."""
    since, reason = outbox.stats.failing(destination)
    return _shown(outbox, since), None if reason is None else clean(reason)


def _lives(outbox: Opened, worker: Mapping[str, Any], now: datetime) -> bool:
    lock = outbox.worker_lock(worker["id"])
    if lock.exists():
        return is_held(lock)
    # A worker of another home on the same database: only the time of its last write is known.
    return bool(now - worker["seen_at"] < 2 * outbox.config.worker.lease)


def _destinations(outbox: Opened, now: datetime) -> list[dict[str, Any]]:
    """The rows that have runs, and those that the configuration of this environment names."""
    named = [each for name, each in outbox.config.destinations.items() if name not in outbox.config.implied]
    owed = outbox.stats.owed_by_destination()
    found = []
    for row in outbox.stats.destinations():
        address = Address(*(row[name] for name in ("name", "label", "type", "url", "account")))
        if row["runs"] or any(map(address.fits, named)):
            # The hold of a row without runs does not matter any more.
            shown = row if row["runs"] else {**row, "held": None}
            found.append(_destination(outbox, shown, address, owed.get(row["name"], 0), now))
    return found


def _destination(
    outbox: Opened, row: Mapping[str, Any], address: Address, waiting: int, now: datetime
) -> dict[str, Any]:
    barred = obstacle(outbox, address)
    served = is_served(outbox, address.name)
    return {
        "name": address.label,
        "type": address.type,
        "url": address.url,
        "held": row["held"],
        "held_at": _shown(outbox, row["held_at"]),
        "probes_at": _due(outbox, row[PROBES_AT.name], now) if row["held"] else None,
        "resumes_at": _shown(outbox, row["resumes_at"]) if row["resumes_at"] > now else None,
        "address": address.name,
        "served": served,
        "waiting": waiting,
        "obstacle": None if barred is None else barred.what,
        "hint": None if barred is None else barred.hint,
    }


def _run(
    outbox: Opened, row: Mapping[str, Any], now: datetime, failed: Collection[str], *, sendable: bool
) -> dict[str, Any]:
    state = row["state"]
    # A run whose process is gone has ended, whether or not a worker has recorded how.
    if state == RunState.FINISHED and row["id"] in failed:
        state = RunState.FAILED
    lock = outbox.run_lock(row["id"])
    if state == RunState.RUNNING and lock.exists() and not presence.lives(lock):
        state = RunState.INTERRUPTED
    beat = next((lane for lane in row["lanes"] if lane["kind"] == Kind.HEARTBEAT), None)
    beating = sendable and state == RunState.RUNNING and beat is not None and beat["next_send_at"] is not None
    beating = beating and beat is not None and not beat["held"]
    # Of a lane on hold the next request is a probe.
    probes = [each["next_send_at"] for each in row["lanes"] if row["held"] and each["next_send_at"]]
    return {
        "id": row["id"],
        "name": row["name"],
        "destination": row["label"],
        "address": row["destination"],
        "together": row["together"],
        "model": row["model"],
        "remote_id": row["remote_id"],
        "url": link(row["url"]),
        "state": str(state),
        "cancelled": row["cancelled"],
        "held": row["held"],
        "probes_at": _due(outbox, min(probes, default=None), now) if sendable else None,
        "unsaved": row["unsaved"],
        "unsaved_why": row["unsaved_why"],
        "created_at": _shown(outbox, row["created_at"]),
        "finished_at": _shown(outbox, row["finished_at"]),
        "last_heartbeat_at": _shown(outbox, row["last_beat_at"]),
        "next_heartbeat_at": _due(outbox, beat["next_send_at"], now) if beating and beat else None,
        "lanes": [
            _lane(outbox, lane, now, sendable=sendable)
            for lane in row["lanes"]
            if lane["kind"] != Kind.HEARTBEAT
        ],
    }


def _lane(outbox: Opened, lane: Mapping[str, Any], now: datetime, *, sendable: bool) -> dict[str, Any]:
    oldest, due = lane["oldest_at"], sendable and not lane["in_flight"] and not lane["held"]
    error = lane["last_error"]
    return {
        "kind": lane["kind"],
        **{name: lane[name] for name in _LANE_COUNTS},
        "oldest_age_s": None if oldest is None else round(max(0.0, (now - oldest).total_seconds()), 1),
        "next_send_at": _due(outbox, lane["next_send_at"], now) if due else None,
        "held": lane["held"],
        "unknown": lane["kind"] not in set(Kind),
        "uploading": _uploading(outbox, lane),
        "last_error": None if error is None else clean(error),
        "unanswered": unanswered(outbox, lane),
    }


def _uploading(outbox: Opened, lane: Mapping[str, Any]) -> dict[str, Any] | None:
    """The upload progress of a lane in flight, as its worker reports it."""
    found = (
        upload_of(outbox.home, lane["run_id"]) if lane["kind"] == Kind.CKPT and lane["in_flight"] else None
    )
    if found is None:
        return None
    rate, left = found.rate, found.seconds_left
    return {
        "sent": found.sent,
        "size": found.size,
        "rate": None if rate is None else round(rate),
        "seconds_left": None if left is None else round(left, 1),
    }


def _due(outbox: Opened, moment: datetime | None, now: datetime) -> str | None:
    """When a lane is due; an overdue lane is due now."""
    return None if moment is None else _shown(outbox, max(moment, now))


def _shown(outbox: Opened, moment: datetime | None) -> str | None:
    if moment is None or moment == EPOCH:
        return None
    return outbox.database.to_wall(moment).isoformat(timespec="milliseconds").replace("+00:00", "Z")
