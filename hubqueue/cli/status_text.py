"""The status as text: what is waiting, when it is sent, what failed and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from hubqueue.cli.screen import ago, fit, parse_time, until, visible, wrap
from hubqueue.domain.outcome import FOREIGN, is_silence
from hubqueue.domain.quantities import plural, size, span
from hubqueue.domain.redact import clean

_HTTP_STATUS = re.compile(r"\d{3} [A-Z][\w' -]*")
_HOST = re.compile(r"^(?!\d{3}:)[\w.:-]+: ")
_STATE_COLOURS = {"running": "green", "interrupted": "yellow", "failed": "red"}


def status_text(status: Mapping[str, Any], now: datetime) -> str:
    """The whole status as lines of text. `now` is the wall clock, UTC."""
    top = [_headline(status, now), *_surroundings(status, now), *_runs(status, now)]
    return "\n".join([*map(fit, top), *_attention(status)])


def _headline(status: Mapping[str, Any], now: datetime) -> str:
    totals = status["totals"]
    unsaved = sum(run["unsaved"] for run in status["runs"])
    if not totals["pending"]:
        whole = "nothing is waiting" if totals["dead"] or unsaved else "all uploaded"
        text = f"{whole}, {totals['delivered']} delivered" if totals["delivered"] else "nothing to upload"
        text += f", {totals['dead']} refused" if totals["dead"] else ""
        text += f", {unsaved} not saved" if unsaved else ""
    else:
        waiting = sum(lane["bytes"] for run in status["runs"] for lane in run["lanes"])
        text = f"{plural(totals['pending'], 'upload')} waiting ({size(waiting)})"
        if totals["in_flight"]:
            text += f", {totals['in_flight']} in flight"
        if totals["retrying"]:
            text += f", {totals['retrying']} retrying"
        following, outage = _next(status), _outage(status, now)
        if outage:
            text = f"{outage}, {text}"
        if following:
            text += f", next {'try ' if outage else ''}{until(following, now)}"
    mark, colour = _mark(status, now)
    return click.style(mark, fg=colour, bold=True) + "  " + click.style(text, bold=True)


def _mark(status: Mapping[str, Any], now: datetime) -> tuple[str, str]:
    if not status["healthy"]:
        return "attention", "red"
    if not status["totals"]["pending"]:
        return "ok", "green"
    if status["worker"]["starting"]:
        return "starting", "yellow"
    return ("waiting", "yellow") if _outage(status, now) else ("ok", "green")


def _outage(status: Mapping[str, Any], now: datetime) -> str | None:
    """Which destination accepts nothing, since when and why. It needs no person, but the headline shows it."""
    for destination in status["destinations"]:
        since = parse_time(destination["failing_since"])
        if destination["resumes_at"]:
            return f"rate-limited by {destination['name']}"
        if since is not None:
            kind = _outage_kind(destination["last_error"] or "")
            return f"{destination['name']}{kind} for {span((now - since).total_seconds())}"
    return None


def _outage_kind(reason: str) -> str:
    """The kind of an outage, as text after the destination's name. Unreachable means: no response was received."""
    if responds := _HTTP_STATUS.match(reason):
        return f" responds {responds.group()}"
    if is_silence(reason):
        return " unreachable"
    if FOREIGN in reason:
        return ": response is not from the hub (login page or wrong URL?)"
    return f": {_HOST.sub('', clean(reason, limit=80))},"


def _next(status: Mapping[str, Any]) -> str | None:
    if not status["worker"]["alive"]:
        return None
    times = (lane["next_send_at"] for run in status["runs"] for lane in run["lanes"])
    return min((time for time in times if time), default=None)


def _surroundings(status: Mapping[str, Any], now: datetime) -> Iterator[str]:
    worker, outbox, spool = status["worker"], status["outbox"], status["spool"]
    if worker["alive"]:
        line = f"running, pid {worker['pid']} on {worker['host']}, started {ago(worker['started_at'], now)}"
    elif worker["starting"]:
        line = "starting"
    elif worker["id"]:
        line = f"not running; the last one (pid {worker['pid']}) was seen {ago(worker['seen_at'], now)}"
    else:
        line = "not running"
    yield f"worker  {line}"
    journal = f"{outbox['backend']} {outbox['version']}, {outbox['journal_mode']}/{outbox['synchronous']}"
    journal += ", read-only" if outbox["read_only"] else ""
    yield f"outbox  {visible(outbox['url'])}  {size(outbox['bytes'])}  ({journal})"
    yield f"spool   {visible(spool['path'])}  {size(spool['bytes'])} of {size(spool['max_bytes'])}, {size(spool['free_bytes'])} free"
    for destination in status["destinations"]:
        line = f"{destination['name']:<7} {destination['url']}"
        if destination["held"]:
            probes = destination["probes_at"] if destination["served"] else None
            line += "  " + click.style(f"ON HOLD: {destination['held']}{_probes(probes, now)}", fg="red")
        elif destination["resumes_at"]:
            line += "  " + click.style(
                f"rate-limited by the hub, resumes {until(destination['resumes_at'], now)}", fg="yellow"
            )
        yield line


def _runs(status: Mapping[str, Any], now: datetime) -> Iterator[str]:
    obstacles = {each["address"]: each["obstacle"] for each in status["destinations"] if not each["served"]}
    before = None
    for run in status["runs"]:
        # The runs of one training follow each other.
        start = "and" if run["together"] and run["together"] == before else "\nrun"
        before = run["together"]
        state = click.style(run["state"], fg=_STATE_COLOURS.get(run["state"]))
        named = f"  {run['name']}" if run["name"] else ""
        line = f"{start} {click.style(run['id'], bold=True)}{named}  {run['model']}  to {run['destination']}  {state}"
        if run["cancelled"]:
            line += "  " + click.style("the hub asks to stop", fg="yellow")
        line += f"  {run['url'] or ('registered' if run['remote_id'] else 'not registered yet')}"
        yield line
        if run["held"]:
            probes = run["probes_at"] if status["worker"]["alive"] else None
            yield "  " + click.style(f"ON HOLD: {run['held']}{_probes(probes, now)}", fg="red")
        # A worker of another home may send what the worker of this home cannot.
        is_sent = any(lane["next_send_at"] or lane["in_flight"] for lane in run["lanes"])
        obstacle = None if is_sent else obstacles.get(run["address"])
        for lane in run["lanes"]:
            if (
                lane["pending"]
                or lane["delivered"]
                or lane["dead"]
                or lane["superseded"]
                or lane["cancelled"]
            ):
                yield from _lane(lane, now, alive=status["worker"]["alive"], obstacle=obstacle)
        if run["next_heartbeat_at"] and status["worker"]["alive"]:
            yield f"  heartbeat     last {ago(run['last_heartbeat_at'], now)}, next {until(run['next_heartbeat_at'], now)}"


def _lane(lane: Mapping[str, Any], now: datetime, *, alive: bool, obstacle: str | None) -> Iterator[str]:
    parts = []
    if lane["pending"]:
        waiting = (
            f"{lane['pending']} waiting ({size(lane['bytes'])}, oldest {span(lane['oldest_age_s'] or 0)})"
        )
        parts.append(click.style(waiting, bold=True))
    parts += [
        f"{lane[name]} {word}"
        for name, word in (("in_flight", "in flight"), ("retrying", "retrying"))
        if lane[name]
    ]
    if lane["uploading"]:
        parts += _upload(lane["uploading"])
    parts += [f"{lane[name]} {name}" for name in ("delivered", "superseded", "cancelled") if lane[name]]
    if lane["dead"]:
        parts.append(click.style(f"{lane['dead']} dead", fg="red"))
    if lane["next_send_at"] and alive:
        parts.append(f"next {until(lane['next_send_at'], now)}")
    elif obstacle and lane["pending"] and not lane["held"]:
        parts.append(click.style(f"not sent: {obstacle}", fg="red"))
    yield f"  {lane['kind']:<13} " + ", ".join(parts)
    if lane["held"] and lane["pending"]:
        yield f"  {'':<13} " + click.style(f"on hold: {lane['held']}", fg="red")
    elif lane["last_error"] and (lane["pending"] or lane["dead"]):
        yield f"  {'':<13} " + click.style(f"last error: {lane['last_error']}", fg="yellow")


def _attention(status: Mapping[str, Any]) -> Iterator[str]:
    for index, concern in enumerate(status["attention"]):
        yield ("\n" if index == 0 else "") + wrap(click.style("! ", fg="red") + concern["what"])
        yield wrap(concern["hint"], "  ")


def _probes(moment: str | None, now: datetime) -> str:
    """When a worker finds out next whether a hold is over."""
    return f"; probes again {until(moment, now)}" if moment else ""


def _upload(uploading: Mapping[str, Any]) -> Iterator[str]:
    yield f"{size(uploading['sent'])} of {size(uploading['size'])}"
    if uploading["rate"]:
        yield f"{size(uploading['rate'])}/s"
        yield f"{span(uploading['seconds_left'] or 0)} left"
