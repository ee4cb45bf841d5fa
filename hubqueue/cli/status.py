"""Commands that only read: status, runs, entries, show, log."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import click

from hubqueue.cli import screen
from hubqueue.cli.arguments import (
    HomeOptions,
    Whole,
    find_entries,
    find_runs,
    json_option,
    pass_options,
    refuse_entry,
    refuse_run,
    run_option,
)
from hubqueue.cli.frame import ATTENTION, DONE, exit_with, on_signal, print_json
from hubqueue.cli.screen import local_time, table
from hubqueue.cli.status_text import status_text
from hubqueue.domain.drafts import key_text
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import size
from hubqueue.domain.redact import harmless

_REFRESH = 1.0
limit_option = click.option(
    "--limit",
    type=Whole(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="Show at most N.",
)


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@run_option
@click.option("--check", is_flag=True, help="Exit with 1 when something needs your attention.")
@pass_options
def status(options: HomeOptions, as_json: bool, watch: bool, run_id: str | None, check: bool) -> None:
    """Show what is waiting, why, and when it will be sent.

    The first word is `ok`, `starting` (the worker is starting), `waiting` (the hub is unreachable, limits the rate,
    or its response is not valid) or `attention` (you must act).

    \b
    Examples:
      hubqueue status
      hubqueue status --check || mail -s "hubqueue needs you" me
      hubqueue status --json | jq .totals.pending
    """
    report = _status(options, run_id)
    if watch:
        report = _watch(options, run_id, report, as_json)
    elif as_json:
        print_json(report)
    else:
        click.echo(_text(options, report))
    exit_with(ATTENTION if check and not report["healthy"] else DONE)


def _watch(options: HomeOptions, run_id: str | None, report: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Show the status until Ctrl-C or SIGTERM; the last report."""
    stop = threading.Event()
    on_signal(stop.set)
    with screen.alternate_screen() if not as_json else nullcontext(False) as has_screen:
        while True:
            if as_json:
                print_json(report)
            elif has_screen:
                screen.repaint(_text(options, report))
            else:
                click.echo(_text(options, report))
            if stop.wait(_REFRESH):
                return report
            report = _status(options, run_id)


@click.command()
@json_option
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Show all runs, not only the ten newest of those that are finished and delivered.",
)
@pass_options
def runs(options: HomeOptions, as_json: bool, everything: bool) -> None:
    """List training runs, newest first.

    It lists those that are running or have waiting or refused entries, and the ten newest others. A training with
    several destinations has a run at each: they have the id of the first one in common (TOGETHER).

    \b
    Example:
      hubqueue runs --all
    """
    if not options.has_outbox():
        print_json([]) if as_json else click.echo("no runs yet")
        return
    from hubqueue.outbox.status import status as describe

    with options.open_to_read() as outbox:
        found = describe(outbox, finished=None if everything else 10)["runs"]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no runs yet")
    else:
        names = any(run["name"] for run in found)
        several = any(run["together"] for run in found)
        more = (*(("NAME",) if names else ()), *(("TOGETHER",) if several else ()))
        headings = ("RUN", *more, "MODEL", "DESTINATION", "STATE")
        rows = [_run_row(run, names=names, several=several) for run in found]
        click.echo(table((*headings, "WAITING", "DEAD", "DELIVERED", "URL"), rows))


@click.command()
@json_option
@click.option(
    "--state", type=click.Choice([str(state) for state in State]), help="Only entries in this state."
)
@run_option
@click.option(
    "--kind",
    type=click.Choice([str(kind) for kind in Kind if kind is not Kind.HEARTBEAT]),
    help="Only entries of this kind.",
)
@limit_option
@pass_options
def entries(
    options: HomeOptions, as_json: bool, state: str | None, run_id: str | None, kind: str | None, limit: int
) -> None:
    """List entries (single uploads), newest first.

    \b
    Examples:
      hubqueue entries --state dead
      hubqueue entries --run 0bf51cd3352d --kind ckpt
    """
    if not options.has_outbox():
        if run_id is not None:
            refuse_run(run_id)
        print_json([]) if as_json else click.echo("no entries yet")
        return
    with options.open_to_read() as outbox:
        chosen = None if state is None else State(state)
        theirs = find_runs(outbox, run_id)
        found = outbox.stats.entries(state=chosen, run_id=theirs, kind=kind, limit=limit)
        to_wall = outbox.database.to_wall
        shown = [_entry(row, to_wall) for row in found]
    if as_json:
        print_json(shown)
    elif not shown:
        click.echo("no entry matches")
    else:
        headings = ("ENTRY", "RUN", "KIND", "KEY", "STATE", "SIZE", "ATTEMPTS", "ENQUEUED", "REASON")
        click.echo(table(headings, [_entry_row(entry) for entry in shown]))


@click.command()
@click.argument("entry", type=Whole())
@json_option
@pass_options
def show(options: HomeOptions, entry: int, as_json: bool) -> None:
    """Show one entry: its state, its content, and its last attempt.

    \b
    Example:
      hubqueue show 42
    """
    if not options.has_outbox():
        refuse_entry(entry)
    with options.open_to_read() as outbox:
        (found,) = find_entries(outbox, [entry])
        to_wall = outbox.database.to_wall
        shown = _entry(found, to_wall)
        row = outbox.stats.run(found["run_id"])
        shown["run_name"] = None if row is None else harmless(row["name"])
        shown["payload"] = harmless(json.loads(outbox.stats.payload(entry) or "null"))
        shown["history"] = [_attempt(row, to_wall) for row in outbox.stats.attempts(entry_id=entry)]
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        if name != "history" and value is not None:
            text = key_text(value) if name == "key" else _value_text(value)
            click.echo(f"{name:<15} {text}")
    if shown["history"]:
        click.echo("\n" + _attempts_table(shown["history"]))


@click.command()
@run_option
@limit_option
@json_option
@pass_options
def log(options: HomeOptions, run_id: str | None, limit: int, as_json: bool) -> None:
    """Show upload attempts, newest first: what, when, and the result.

    \b
    Example:
      hubqueue log --run 0bf51cd3352d --limit 10
    """
    if not options.has_outbox():
        if run_id is not None:
            refuse_run(run_id)
        print_json([]) if as_json else click.echo("no attempts yet")
        return
    with options.open_to_read() as outbox:
        to_wall = outbox.database.to_wall
        theirs = find_runs(outbox, run_id)
        found = [_attempt(row, to_wall) for row in outbox.stats.attempts(run_id=theirs, limit=limit)]
    if as_json:
        print_json(found)
    else:
        click.echo(_attempts_table(found) if found else "no attempts yet")


def _status(options: HomeOptions, run_id: str | None) -> dict[str, Any]:
    from hubqueue.outbox.status import nothing_yet
    from hubqueue.outbox.status import status as describe

    if options.has_outbox():
        with options.open_to_read() as outbox:
            return describe(outbox, run_id=find_runs(outbox, run_id))
    if run_id is not None:
        refuse_run(run_id)
    return nothing_yet(options.home(), options.config())


def _text(options: HomeOptions, report: dict[str, Any]) -> str:
    if report["outbox"]["revision"] is None and report["healthy"]:
        return f"nothing was enqueued here yet: {screen.visible(str(options.home().path))} has no outbox"
    return status_text(report, datetime.now(UTC))


def _run_row(run: dict[str, Any], *, names: bool, several: bool) -> tuple[str, ...]:
    counts = [sum(lane[name] for lane in run["lanes"]) for name in ("pending", "dead", "delivered")]
    where = run["url"] or ("registered" if run["remote_id"] else "not registered yet")
    return (
        run["id"],
        *((run["name"] or "",) if names else ()),
        *((run["together"] or "",) if several else ()),
        run["model"],
        run["destination"],
        run["state"],
        *(str(count) for count in counts),
        where,
    )


def _entry(row: dict[str, Any], to_wall: Any) -> dict[str, Any]:
    names = (
        "id",
        "run_id",
        "kind",
        "key",
        "state",
        "in_flight",
        "size",
        "final",
        "snapshot",
        "snapshot_sha256",
        "attempts",
        "reason",
    )
    shown = harmless({name: row[name] for name in names})
    for name in ("enqueued_at", "settled_at"):
        shown[name] = None if row[name] is None else to_wall(row[name])
    return shown


def _entry_row(entry: dict[str, Any]) -> tuple[str, ...]:
    state = "in flight" if entry["in_flight"] else str(entry["state"])
    counted = (size(entry["size"]), str(entry["attempts"]))
    return (
        str(entry["id"]),
        entry["run_id"],
        entry["kind"],
        key_text(entry["key"]),
        state,
        *counted,
        local_time(entry["enqueued_at"]),
        entry["reason"] or "",
    )


def _attempt(row: dict[str, Any], to_wall: Any) -> dict[str, Any]:
    names = (
        *("id", "run_id", "kind", "entries", "first_key"),
        *("last_key", "size", "worker", "outcome", "reason"),
    )
    shown = harmless({name: row[name] for name in names})
    for name in ("claimed_at", "started_at", "ended_at"):
        shown[name] = None if row[name] is None else to_wall(row[name])
    return shown


def _value_text(value: object) -> str:
    match value:
        case dict():
            return json.dumps(value)
        case datetime():
            return local_time(value)
        case _:
            return str(value)


def _attempts_table(attempts: list[dict[str, Any]]) -> str:
    rows = []
    for attempt in attempts:
        first, last = (each and key_text(each) for each in (attempt["first_key"], attempt["last_key"]))
        keys = "" if first is None else first if first == last else f"{first}…{last}"
        started, ended = attempt["started_at"], attempt["ended_at"]
        took = f"{(ended - started).total_seconds():.2f} s" if started and ended else ""
        outcome = attempt["outcome"] or "in flight"
        counted = (str(attempt["entries"]), size(attempt["size"]), took)
        rows.append(
            (
                local_time(attempt["claimed_at"]),
                attempt["run_id"],
                attempt["kind"],
                keys,
                *counted,
                outcome,
                attempt["reason"] or "",
            )
        )
    return table(("CLAIMED", "RUN", "KIND", "KEYS", "ENTRIES", "SIZE", "TOOK", "OUTCOME", "REASON"), rows)
