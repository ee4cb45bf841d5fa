"""What needs a person: each problem of a status, with a hint.

Among them are entries that are tried again and again: nothing is given up, but it must be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubqueue.domain.entry import Kind
from hubqueue.domain.outcome import UNANSWERED
from hubqueue.domain.quantities import plural
from hubqueue.domain.redact import clean
from hubqueue.outbox.database.sqlite import asides, report_of
from hubqueue.outbox.reach import cure

if TYPE_CHECKING:
    from hubqueue.outbox.opened import Opened

# After this many attempts without a response of the hub a person should know: with backoff, some ten minutes.
_STUCK_AFTER = 10
# After this many whole uploads without a response a person should know.
_UNANSWERED = 3


def needs_a_person(
    outbox: Opened,
    totals: Mapping[str, int],
    destinations: list[dict[str, Any]],
    runs: list[dict[str, Any]],
    worker: Mapping[str, Any],
) -> list[dict[str, str]]:
    """What needs a person: each problem with a hint."""
    found = []
    for destination in destinations:
        name, where = destination["name"], f"{destination['name']} ({destination['url']})"
        if destination["held"]:
            hint = cure(name, destination["url"], destination["held"])
            found.append({"what": f"destination {where} is on hold: {destination['held']}", "hint": hint})
        elif destination["waiting"] and is_barred(destination):
            waiting = (
                f"{destination['waiting']} {'entry waits' if destination['waiting'] == 1 else 'entries wait'}"
            )
            found.append(
                {"what": f"{waiting} for {where}: {destination['obstacle']}", "hint": destination["hint"]}
            )
    for run in runs:
        if run["held"]:
            only = f" --to {run['destination']}" if run["together"] else ""
            hint = f"hubqueue resume {run['destination']}, or give it up: hubqueue cancel --run {run['id']}{only}"
            found.append({"what": f"run {run['id']} is on hold: {run['held']}", "hint": hint})
        if run["unsaved"]:
            what = f"run {run['id']}: {run['unsaved']} could not be saved ({run['unsaved_why']})"
            found.append({"what": what, "hint": "these are lost; hubqueue check finds what else is wrong"})
        for lane in run["lanes"]:
            if lane["unknown"]:
                found.append(
                    {"what": f"run {run['id']}: {lane['held']}", "hint": "upgrade hubqueue on this machine"}
                )
    found += [*_refused_before_the_hub(outbox), *_without_response(runs)]
    away = outbox.spool.away()
    if away is not None:
        found.append({"what": str(away), "hint": away.hint or ""})
    if totals["dead"]:
        refused = plural(totals["dead"], "entry was", "entries were")
        what = f"{refused} refused by the hub (dead)"
        found.append(
            {
                "what": what,
                "hint": "see why: hubqueue entries --state dead; retry: hubqueue redrive --all",
            }
        )
    unserved = [each for each in destinations if each["waiting"] and not (each["served"] or each["obstacle"])]
    if unserved and not is_shared(outbox, worker) and not worker["starting"]:
        hint = "start a worker: hubqueue worker --detach; or send now: hubqueue drain"
        waiting = plural(sum(each["waiting"] for each in unserved), "upload is", "uploads are")
        which = "no worker with their address and key" if worker["alive"] else "no worker"
        found.append({"what": f"{waiting} waiting and {which} is running", "hint": hint})
    return [*found, *(aside(path) for path in asides(outbox.home.outbox))]


def is_barred(destination: Mapping[str, Any]) -> bool:
    """Whether nothing can be sent there now: no worker sends, and this environment cannot."""
    return destination["obstacle"] is not None and not destination["served"]


def is_shared(outbox: Opened, worker: Mapping[str, Any]) -> bool:
    """Whether a worker of another home may send: a shared database shows only that it lives."""
    return outbox.config.outbox.url is not None and bool(worker["alive"])


def aside(path: Path) -> dict[str, str]:
    """A damaged outbox that was set aside, with what was saved of it."""
    report = report_of(path)
    hint = "see the details: hubqueue check; then move the file away"
    return {
        "what": f"a damaged outbox was set aside: {path}" + (f"; {report}" if report else ""),
        "hint": hint,
    }


def _refused_before_the_hub(outbox: Opened) -> Iterator[dict[str, str]]:
    """Entries that something between this machine and the hub keeps refusing (decision 0023)."""
    for lane in outbox.stats.stuck(_STUCK_AFTER):
        what = (
            f"run {lane['run_id']}: {plural(lane['entries'], 'entry', 'entries')} of {lane['kind']} tried "
            f"{lane['attempts']} times without a response of the hub: {clean(lane['reason'])}"
        )
        hint = (
            "log in to the network, or correct the address or the proxy; if other entries get through, a limit refuses "
            f"these: hubqueue entries --run {lane['run_id']}, then hubqueue cancel ENTRY"
        )
        yield {"what": what, "hint": hint}


def unanswered(outbox: Opened, lane: Mapping[str, Any]) -> int:
    """How many of a lane's newest attempts sent a whole request in vain; 0 once one had another end."""
    ended_so = lane["pending"] and UNANSWERED in (lane["last_error"] or "")
    return outbox.stats.unanswered(lane["id"]) if ended_so else 0


def _without_response(runs: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Checkpoints that a hub receives whole, and does not respond to in time."""
    for run in runs:
        for lane in run["lanes"]:
            if lane["kind"] == Kind.CKPT and lane["unanswered"] >= _UNANSWERED:
                what = (
                    f"run {run['id']}: the hub received a whole checkpoint {lane['unanswered']} times and did not "
                    f"respond in time: {lane['last_error']}"
                )
                hint = (
                    "each next attempt waits twice as long, up to an hour; if that is not enough, raise "
                    f"destinations.{run['destination']}.answer_timeout, or see why the hub takes so long"
                )
                yield {"what": what, "hint": hint}
