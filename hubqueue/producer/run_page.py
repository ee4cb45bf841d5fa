"""The HTML that a notebook shows for a run: what waits at each destination and why, as `hubqueue status` reports it.

Promises: it never raises, it does not use the network, and it contains no markup from outside.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from hubqueue.config.home import Home
from hubqueue.domain.quantities import plural, size, span
from hubqueue.domain.redact import clean, link
from hubqueue.outbox.database.patience import impatient
from hubqueue.producer.leftover import Leftover, lost, refused
from hubqueue.producer.several.savings import Savings
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.survival import logger

_LOG = logger()
# Seconds that each statement waits for a locked database at most: a person waits for the display.
_PATIENCE = 1.0
_REASON = 200


def run_page(run_id: str | None, savings: Savings, home: Home, *, starts_worker: bool) -> str:
    """A run as a few lines of HTML, as its outbox has it now."""
    try:
        with impatient(_PATIENCE):
            left, found = savings.left(), _status(savings, starts_worker=starts_worker)
        return page(run_id, left, found, datetime.now(UTC), _command(run_id, home))
    except Exception as error:
        _LOG.debug("the run cannot be displayed: %s", error)
        return f"<div>hubqueue run <code>{escape(str(run_id))}</code>: its outbox cannot be read now</div>"


def page(
    run_id: str | None, left: Leftover, found: Mapping[str, Any] | None, now: datetime, command: str
) -> str:
    """The same, of what the run owes, the status of its outbox (None: it cannot be read) and the time."""
    runs = {} if found is None else {each["destination"]: each for each in found["runs"]}
    first = next(iter(runs.values()), None)
    named = "" if first is None else f" ({_safe(first['name'] or first['model'])})"
    title = f"hubqueue run <code>{escape(run_id or 'not saved yet')}</code>{named}"
    lines = "".join(
        f"<li>{_line(name, one, runs.get(name), found, now)}</li>"
        for name, one in left.by_destination.items()
    )
    more = f"continue it with <code>resume=&quot;{escape(run_id)}&quot;</code>; " if run_id else ""
    return f"<div>{title}<ul>{lines}</ul>{more}details: <code>!{escape(command)}</code></div>"


def _line(
    name: str,
    left: Leftover,
    run: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    now: datetime,
) -> str:
    """What one destination has: the state of the run, what waits and why, and the page."""
    parts = [_safe(each) for each in _owed(left, run, found, now)] or ["everything so far has arrived"]
    state, url = ("", None) if run is None else (f", {_safe(run['state'])}", link(run["url"]))
    shown = f'; <a href="{escape(url)}" target="_blank" rel="noopener">page</a>' if url else ""
    return f"to {_safe(name)}{state}: {'; '.join(parts)}{shown}"


def _owed(
    left: Leftover, run: Mapping[str, Any] | None, found: Mapping[str, Any] | None, now: datetime
) -> Iterator[str]:
    if left.dead:
        yield refused(left)
    if left.entries:
        why = [f"on hold: {left.held}"] if left.held else ["saved on disk"]
        if run is not None and found is not None:
            why = [*_why(run, found, now)] or why
        are = "is" if left.entries == 1 else "are"
        yield ", ".join([f"{plural(left.entries, 'upload')} ({size(left.bytes)}) {are} waiting", *why])
    if left.unsaved:
        yield lost(left)


def _why(run: Mapping[str, Any], found: Mapping[str, Any], now: datetime) -> Iterator[str]:
    """Why the uploads of a run wait, the reason that stops them first."""
    worker, lanes = found["worker"], [each for each in run["lanes"] if each["pending"]]
    destination = next(each for each in found["destinations"] if each["address"] == run["address"])
    held = run["held"] or destination["held"] or next((each["held"] for each in lanes if each["held"]), None)
    if held:
        yield f"on hold: {held}"
    elif destination["obstacle"] and not destination["served"]:
        yield f"not sent: {destination['obstacle']}"
    elif worker["starting"]:
        yield "a worker is starting"
    elif not worker["alive"]:
        yield "no worker is running (hubqueue drain sends them)"
    if flying := sum(each["in_flight"] for each in lanes):
        yield f"{flying} in flight"
    if error := next((each["last_error"] for each in lanes if each["last_error"]), None):
        yield f"last error: {error}"
    following = min((each["next_send_at"] for each in lanes if each["next_send_at"]), default=None)
    if following and worker["alive"] and not held:
        seconds = (datetime.fromisoformat(following) - now).total_seconds()
        yield f"next in {span(seconds)}" if seconds >= 1 else "next now"


def _status(savings: Savings, *, starts_worker: bool) -> dict[str, Any] | None:
    """The status of the run's outbox, with the run at each destination; None until it could be opened."""
    openings = list(savings.openings())
    ids = [each.run_id for each in openings if each.run_id is not None]
    outbox = openings[0].outbox
    if outbox is None or not ids or openings[0].was_replaced():
        return None
    from hubqueue.outbox.status import status  # a training without a notebook never needs it

    with SHARED.used(outbox):
        found = status(outbox, run_id=ids)
    # Another process can only guess that from the age of the run.
    found["worker"]["starting"] &= starts_worker
    return found


def _command(run_id: str | None, home: Home) -> str:
    """The command that shows this home, wherever its path comes from."""
    of_run = f" --run {run_id}" if run_id else ""
    where = "" if home == Home.locate() else f" --home {shlex.quote(str(home.path))}"
    return f"hubqueue{where} status{of_run}"


def _safe(text: str) -> str:
    """A text of a row or of a server: one line, without keys and without markup."""
    return escape(clean(text, limit=_REASON))
