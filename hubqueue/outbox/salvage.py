"""Copies what can still be read of a damaged outbox into the outbox that replaced it.

Promises: the damaged file and its spool are not changed; a run is copied with all its readable entries in one
transaction, and only once, also after a crash; what was delivered, or has a newer value, is not owed again; a report of
what was copied, and what was not, is written beside the file. An entry whose latest state is lost may be sent twice.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubqueue.config.registry import BUILT_IN, absent, is_known, of_row
from hubqueue.domain.account import UNKNOWN
from hubqueue.domain.budget import COSTS
from hubqueue.domain.drafts import FINAL_RANK
from hubqueue.domain.entry import MERGED, Draft, Kind, Snapshot
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.domain.plain import is_intact
from hubqueue.domain.quantities import plural
from hubqueue.outbox.database import pages
from hubqueue.outbox.database.sqlite import asides, report_beside, report_of
from hubqueue.outbox.moves.merging import joined
from hubqueue.outbox.outbox import Outbox

_LOG = logging.getLogger("hubqueue")
_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
# The columns in the order of the migrations; rows from before a later migration have fewer.
COLUMNS = {
    "destinations": (
        "name",
        "type",
        "url",
        "held",
        "held_at",
        "resumes_at",
        "requests_free_at",
        "uploads_free_at",
        "label",
        "account",
    ),
    "runs": (
        *("id", "destination", "model", "remote_id", "url", "agent_id", "state", "cancelled", "held"),
        *("created_at", "finished_at", "last_beat_at", "remote_run", "remote_file", "unsaved", "unsaved_why"),
        *("remembered", "name", "together"),
    ),
    "lanes": (
        *(
            "id",
            "run_id",
            "kind",
            "enqueued",
            "pending",
            "delivered",
            "dead",
            "superseded",
            "cancelled",
            "bytes",
        ),
        *(
            "paced_until",
            "retry_at",
            "failures",
            "attempts",
            "last_error",
            "lease_token",
            "lease_until",
            "lease_worker",
            "owing",
        ),
    ),
    "entries": (
        *("id", "lane_id", "key", "rank", "state", "payload", "size", "final", "snapshot", "snapshot_size"),
        *("snapshot_mtime_ns", "snapshot_sha256", "batch", "claim_token", "attempts", "reason"),
        *("enqueued_at", "settled_at", "progress", "checksum"),
    ),
}
_ADDED = {"destinations": 4, "runs": 7, "lanes": 1, "entries": 2}


@dataclass(slots=True)
class Saved:
    """What was saved from one damaged outbox."""

    path: Path
    runs: int = 0
    entries: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lost = f"; not: {'; '.join(self.lost)}" if self.lost else ""
        owed = plural(self.entries, "owed entry was", "owed entries were")
        return f"{owed} saved from it, of {plural(self.runs, 'run')}{lost}"


@dataclass(slots=True)
class _Found:
    """The rows of one file, by table."""

    destinations: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    lanes: dict[int, dict[str, Any]] = field(default_factory=dict)
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    # From the indexes: a lane's run and kind; by the rowid of a run its id, and its destination and remote id.
    lane_hints: dict[int, tuple[str, str]] = field(default_factory=dict)
    run_hints: dict[int, str] = field(default_factory=dict)
    model_hints: dict[int, tuple[str, str]] = field(default_factory=dict)


def salvage(outbox: Outbox) -> list[Saved]:
    """Copy what can be read of every damaged outbox beside this one that has no report yet."""
    if outbox.config.outbox.url or outbox.spool.away():
        return []  # without the spool, all checkpoints would count as lost
    return [_salvage(outbox, path) for path in asides(outbox.home.outbox) if report_of(path) is None]


def _salvage(outbox: Outbox, path: Path) -> Saved:
    saved, found = Saved(path), _read(path)
    owed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    without_run = 0
    for entry in _owed(found):
        lane = found.lanes.get(entry["lane_id"])
        if lane is None or lane["run_id"] not in found.runs:
            without_run += 1
        else:
            owed[lane["run_id"]].append({**entry, "kind": lane["kind"]})
    if without_run:
        saved.lost.append(f"{plural(without_run, 'entry', 'entries')} whose run cannot be read")
    counted = sum(max(0, lane["pending"]) for lane in found.lanes.values())
    seen = sum(map(len, owed.values())) + without_run
    if counted > seen:
        unread = plural(counted - seen, "entry", "entries")
        saved.lost.append(f"{unread} that cannot be read")
    if not found.entries and not found.runs:
        saved.lost.append("nothing in it can be read")
    for run_id, entries in owed.items():
        _copy_run(outbox, found, found.runs[run_id], entries, saved)
    _write_report(saved)
    return saved


def _read(path: Path) -> _Found:
    found = _Found()
    for row in pages.rows(path):
        if row.rowid is None:
            _take_hint(found, row.values)
            continue
        for table, is_valid in _CHECKS.items():
            names = COLUMNS[table]
            if not len(names) - _ADDED[table] <= len(row.values) <= len(names):
                continue
            values = dict.fromkeys(names) | dict(zip(names, row.values, strict=False))
            if table in ("lanes", "entries") and values["id"] is None:
                values["id"] = row.rowid  # an INTEGER PRIMARY KEY is the rowid
            if is_valid(values):
                _keep(getattr(found, table), values[names[0]], values)
                break
    _complete(found)
    return found


def _take_hint(found: _Found, values: tuple[pages.Value, ...]) -> None:
    """Note what an index contains of a row whose own page may be lost."""
    match values:
        case (str(run_id), str(kind), int(lane_id)) if _is_run_id(run_id) and kind in set(Kind):
            found.lane_hints[lane_id] = (run_id, kind)
        case (str(run_id), int(rowid)) if _is_run_id(run_id):
            found.run_hints[rowid] = run_id
        case (str(destination), str(remote_id), int(rowid)) if remote_id not in COSTS:  # a row of `budgets`
            found.model_hints[rowid] = (destination, remote_id)


def _complete(found: _Found) -> None:
    """Add lanes and runs that are known from the indexes only: that is enough to send."""
    for lane_id, (run_id, kind) in found.lane_hints.items():
        found.lanes.setdefault(lane_id, {"id": lane_id, "run_id": run_id, "kind": kind, "pending": 0})
    for rowid, run_id in found.run_hints.items():
        if rowid in found.model_hints:
            destination, remote_id = found.model_hints[rowid]
            known = {"id": run_id, "destination": destination, "remote_id": remote_id, "model": remote_id}
            row = dict.fromkeys(COLUMNS["runs"]) | known | {"state": RunState.INTERRUPTED}
            found.runs.setdefault(run_id, row)


def _keep(table: dict[Any, dict[str, Any]], key: Any, values: dict[str, Any]) -> None:
    """Keep one of two copies of an entry (a freed page still has its rows): the settled one is newer."""
    known = table.get(key)
    if known is None or known.get("state") == State.PENDING:
        table[key] = values


def _owed(found: _Found) -> list[dict[str, Any]]:
    """Pending and dead entries, oldest first, without those that a newer one with their key has replaced.

    Of a kind that merges, a key has one entry with the values of all of them, delivered ones too: the outbox that it is
    copied to does not know those.
    """
    newest: dict[tuple[int, str], int] = {}
    finals: dict[int, int] = {}
    for entry in found.entries.values():
        if entry["state"] in (State.PENDING, State.DELIVERED):
            key = (entry["lane_id"], entry["key"])
            newest[key] = max(newest.get(key, 0), entry["id"])
            if entry["rank"] == FINAL_RANK:
                finals[entry["lane_id"]] = max(finals.get(entry["lane_id"], 0), entry["id"])
    merging = {lane["id"] for lane in found.lanes.values() if lane["kind"] in MERGED}
    of_key: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    owed = []
    for _, entry in sorted(found.entries.items()):
        if entry["lane_id"] in merging:
            of_key[entry["lane_id"], entry["key"]].append(entry)
        elif (
            entry["state"] in (State.PENDING, State.DEAD)
            and entry["id"] >= newest.get((entry["lane_id"], entry["key"]), 0)
            and entry["id"] >= finals.get(entry["lane_id"], 0)
        ):
            owed.append(entry)
    owed += filter(None, map(joined, of_key.values()))
    return sorted(owed, key=lambda entry: int(entry["id"]))


def _copy_run(
    outbox: Outbox, found: _Found, run: Mapping[str, Any], entries: list[dict[str, Any]], saved: Saved
) -> None:
    """Copy one run with its entries, snapshots first."""
    kept = found.destinations.get(run["destination"]) or {}
    label = kept.get("label") or run["destination"].partition("@")[0]
    target = outbox.config.destinations.get(label)
    type = kept.get("type") or (target.type if target else next(iter(BUILT_IN)))
    url, account = kept.get("url") or "", kept.get("account") if kept else UNKNOWN
    if not kept:
        saved.lost.append(
            f"the address of run {run['id']}: hubqueue readdress --run sends it to another address"
        )
    drafts, missing = [], 0
    for entry in entries:
        snapshot = _snapshot(outbox, saved.path, entry)
        if entry["snapshot"] and snapshot is None:
            missing += 1
        else:
            drafts.append(_draft(entry, snapshot))
    if missing:
        saved.lost.append(f"{missing} checkpoints of run {run['id']} whose files are gone")
    try:
        name = outbox.addresses.keep(label, type, url, account)
        if outbox.registry.adopt_run(
            {**run, "destination": name}, kinds=_lanes_of(found, run["id"], type), drafts=drafts
        ):
            saved.runs += 1
            saved.entries += len(drafts)
    except Exception as error:  # an unexpected value must not lose the other runs
        _LOG.warning(
            "run %s cannot be copied from the damaged outbox %s",
            run["id"],
            saved.path,
            exc_info=not isinstance(error, HubqueueError),
        )
        held = plural(len(drafts), "entry", "entries")
        saved.lost.append(f"run {run['id']} with {held}: {error.__class__.__name__}")


def _lanes_of(found: _Found, run_id: str, type: str) -> Collection[Kind]:
    """The lanes of a run: those that its destination declares, or those it had where that cannot be known now."""
    if absent(type) is None:
        return of_row(type).lanes
    return {Kind(lane["kind"]) for lane in found.lanes.values() if lane["run_id"] == run_id}


def _draft(entry: Mapping[str, Any], snapshot: Snapshot | None) -> Draft:
    final = bool(entry["final"])
    replaces = ("last", "best") if entry["kind"] == Kind.CKPT and final else ()
    return Draft(
        Kind(entry["kind"]),
        entry["key"],
        entry["rank"],
        entry["payload"],
        snapshot,
        final=final,
        replaces=replaces,
    )


def _snapshot(outbox: Outbox, path: Path, entry: Mapping[str, Any]) -> Snapshot | None:
    """The snapshot of an entry, in the current spool; None when its file is gone."""
    if not entry["snapshot"]:
        return None
    snapshot = Snapshot(
        entry["snapshot"], entry["snapshot_size"], entry["snapshot_mtime_ns"], entry["snapshot_sha256"]
    )
    spool = outbox.spool.path
    kept = spool.with_name(spool.name + path.name.removeprefix(outbox.home.outbox.name))
    try:
        return snapshot if outbox.spool.adopt(snapshot, kept) else None
    except (OSError, HubqueueError):
        return None


def _write_report(saved: Saved) -> None:
    report = report_beside(saved.path)
    text = json.dumps({"said": str(saved), "runs": saved.runs, "entries": saved.entries, "lost": saved.lost})
    report.write_text(text + "\n", encoding="utf-8")
    report.chmod(0o600)


def _is_run_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{12}", text) is not None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _is_destination(row: Mapping[str, Any]) -> bool:
    named = all(isinstance(row[name], str) for name in ("name", "type", "url"))
    # The type may not be installed here.
    return named and (
        is_known(row["type"]) or (_TYPE.fullmatch(row["type"]) is not None and "://" in row["url"])
    )


def _is_run(row: Mapping[str, Any]) -> bool:
    texts = all(isinstance(row[name], str) and row[name] for name in ("id", "destination", "model"))
    return texts and row["state"] in set(RunState) and isinstance(row["created_at"], int)


def _is_lane(row: Mapping[str, Any]) -> bool:
    named = _is_count(row["id"]) and isinstance(row["run_id"], str) and row["kind"] in set(Kind)
    return named and all(_is_count(row[name]) for name in ("enqueued", "pending", "delivered", "bytes"))


def _is_entry(row: Mapping[str, Any]) -> bool:
    numbers = all(_is_count(row[name]) for name in ("id", "lane_id", "size", "enqueued_at"))
    numbers = (
        numbers and isinstance(row["rank"], int) and (not row["snapshot"] or _is_count(row["snapshot_size"]))
    )
    named = isinstance(row["key"], str) and row["state"] in set(State) and row["final"] in (0, 1)
    texts = isinstance(row["payload"], str) and isinstance(row["checksum"], int | None)
    # A damaged header that lost a column would put the checksum into `progress`, and the payload would be unproven.
    texts = texts and isinstance(row["progress"], str | None)
    return numbers and named and texts and is_intact(row["key"], row["payload"], row["checksum"])


_CHECKS = {"entries": _is_entry, "lanes": _is_lane, "runs": _is_run, "destinations": _is_destination}
