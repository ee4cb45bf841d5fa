"""Commands that only look: status, runs, entries, show, log."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any, NoReturn

import click

from hubqueue.cli.frame import (
    ATTENTION,
    DONE,
    USAGE,
    Place,
    json_option,
    leave,
    pass_place,
    print_json,
    run_option,
)
from hubqueue.cli.glance import glance
from hubqueue.cli.words import size, table
from hubqueue.entry import Kind
from hubqueue.lifecycle import State
from hubqueue.redact import harmless

_REFRESH = 1.0
limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="At most so many, newest first.",
)


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Go on showing it, once a second, until Ctrl-C.")
@run_option
@click.option("--check", is_flag=True, help="Exit with 1 when something needs a person.")
@pass_place
def status(place: Place, as_json: bool, watch: bool, run_id: str | None, check: bool) -> None:
    """What is owed, since when, why, and when it goes.

    \b
    Examples:
      hubqueue status
      hubqueue status --check || mail -s "hubqueue needs you" me
      hubqueue status --json | jq .totals.pending
    """
    while True:
        shown = _status(place, run_id)
        if as_json:
            print_json(shown)
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            click.echo(_worded(place, shown))
        if not watch:
            break
        try:
            threading.Event().wait(_REFRESH)
        except KeyboardInterrupt:
            break
    leave(ATTENTION if check and not shown["healthy"] else DONE)


@click.command()
@json_option
@click.option("--all", "everything", is_flag=True, help="Also runs with nothing left to send.")
@pass_place
def runs(place: Place, as_json: bool, everything: bool) -> None:
    """The training runs, newest first.

    \b
    Example:
      hubqueue runs --all
    """
    if not place.has_outbox():
        print_json([]) if as_json else click.echo("no runs yet")
        return
    from hubqueue.status import status as describe

    with place.open() as outbox:
        found = describe(outbox, finished=None if everything else 10)["runs"]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no runs yet")
    else:
        rows = [_run_row(run) for run in found]
        click.echo(table(("RUN", "MODEL", "DESTINATION", "STATE", "OWED", "DEAD", "DELIVERED", "URL"), rows))


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
@pass_place
def entries(
    place: Place, as_json: bool, state: str | None, run_id: str | None, kind: str | None, limit: int
) -> None:
    """The entries themselves, newest first.

    \b
    Examples:
      hubqueue entries --state dead
      hubqueue entries --run 0bf51cd3352d --kind ckpt
    """
    if not place.has_outbox():
        print_json([]) if as_json else click.echo("no entries yet")
        return
    with place.open() as outbox:
        chosen = None if state is None else State(state)
        found = outbox.stats.entries(state=chosen, run_id=run_id, kind=kind, limit=limit)
        to_wall = outbox.database.to_wall
        shown = [_entry(row, to_wall) for row in found]
    if as_json:
        print_json(shown)
    elif not shown:
        click.echo("no such entries")
    else:
        headings = ("ENTRY", "RUN", "KIND", "KEY", "STATE", "SIZE", "ATTEMPTS", "ENQUEUED", "REASON")
        click.echo(table(headings, [_entry_row(entry) for entry in shown]))


@click.command()
@click.argument("entry", type=int)
@json_option
@pass_place
def show(place: Place, entry: int, as_json: bool) -> None:
    """One entry: where it is, what it carries, what its last attempt said.

    \b
    Example:
      hubqueue show 42
    """
    if not place.has_outbox():
        _no_such_entry(entry)
    with place.open() as outbox:
        found = outbox.stats.entries(ids=[entry])
        if not found:
            _no_such_entry(entry)
        to_wall = outbox.database.to_wall
        shown = _entry(found[0], to_wall)
        shown["payload"] = harmless(json.loads(outbox.stats.payload(entry) or "null"))
        shown["history"] = [_attempt(row, to_wall) for row in outbox.stats.attempts(entry_id=entry)]
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        if name != "history" and value is not None:
            click.echo(f"{name:<12} {json.dumps(value) if isinstance(value, dict) else value}")
    if shown["history"]:
        click.echo("\n" + _history(shown["history"]))


@click.command()
@run_option
@limit_option
@json_option
@pass_place
def log(place: Place, run_id: str | None, limit: int, as_json: bool) -> None:
    """The history of attempts, newest first: what was sent, when, and what came of it.

    \b
    Example:
      hubqueue log --run 0bf51cd3352d --limit 10
    """
    if not place.has_outbox():
        print_json([]) if as_json else click.echo("no attempts yet")
        return
    with place.open() as outbox:
        to_wall = outbox.database.to_wall
        found = [_attempt(row, to_wall) for row in outbox.stats.attempts(run_id=run_id, limit=limit)]
    if as_json:
        print_json(found)
    else:
        click.echo(_history(found) if found else "no attempts yet")


def _no_such_entry(entry: int) -> NoReturn:
    click.echo(click.style("error: ", fg="red") + f"there is no entry {entry}", err=True)
    click.echo("hint: hubqueue entries lists them; delivered ones are pruned after a while", err=True)
    leave(USAGE)


def _status(place: Place, run_id: str | None) -> dict[str, Any]:
    from hubqueue.status import nothing_yet
    from hubqueue.status import status as describe

    if place.has_outbox():
        with place.open() as outbox:
            shown = describe(outbox, run_id=run_id)
    else:
        shown = nothing_yet(place.home(), place.config())
    if run_id is not None and not shown["runs"]:
        click.echo(click.style("error: ", fg="red") + f"there is no run {run_id}", err=True)
        click.echo("hint: hubqueue runs --all lists them", err=True)
        leave(USAGE)
    return shown


def _worded(place: Place, shown: dict[str, Any]) -> str:
    if shown["outbox"]["revision"] is None and shown["healthy"]:
        return f"nothing was enqueued here yet: {place.home().path} has no outbox"
    return glance(shown, datetime.now(UTC))


def _run_row(run: dict[str, Any]) -> tuple[str, ...]:
    counts = [sum(lane[name] for lane in run["lanes"]) for name in ("pending", "dead", "delivered")]
    where = run["url"] or "not registered yet"
    return (
        run["id"],
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
    enqueued = f"{entry['enqueued_at']:%Y-%m-%d %H:%M:%S}"
    counted = (size(entry["size"]), str(entry["attempts"]))
    return (
        str(entry["id"]),
        entry["run_id"],
        entry["kind"],
        entry["key"],
        state,
        *counted,
        enqueued,
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


def _history(attempts: list[dict[str, Any]]) -> str:
    rows = []
    for attempt in attempts:
        first, last = attempt["first_key"], attempt["last_key"]
        keys = "" if first is None else first if first == last else f"{first}…{last}"
        started, ended = attempt["started_at"], attempt["ended_at"]
        took = f"{(ended - started).total_seconds():.2f} s" if started and ended else ""
        when = f"{attempt['claimed_at']:%Y-%m-%d %H:%M:%S}"
        outcome = attempt["outcome"] or "in flight"
        counted = (str(attempt["entries"]), size(attempt["size"]), took)
        rows.append(
            (when, attempt["run_id"], attempt["kind"], keys, *counted, outcome, attempt["reason"] or "")
        )
    return table(("CLAIMED", "RUN", "KIND", "KEYS", "ENTRIES", "SIZE", "TOOK", "OUTCOME", "REASON"), rows)
