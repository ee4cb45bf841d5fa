"""Entries that are tried again and again, and that only a person can help: nothing is given up, but it must be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hubqueue.domain.entry import Kind
from hubqueue.domain.outcome import UNANSWERED
from hubqueue.domain.quantities import plural
from hubqueue.domain.redact import clean

if TYPE_CHECKING:
    from hubqueue.outbox.opened import Opened

# After this many attempts without a response of the hub a person should know: with backoff, some ten minutes.
_STUCK_AFTER = 10
# After this many whole uploads without a response a person should know.
_UNANSWERED = 3


def refused_before_the_hub(outbox: Opened) -> Iterator[dict[str, str]]:
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


def without_response(runs: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
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
