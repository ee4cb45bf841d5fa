"""Commands that change what is owed, or put things right: redrive, cancel, resume, login, prune, migrate, check."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from hubqueue.cli.frame import ATTENTION, DONE, USAGE, Place, json_option, leave, pass_place, print_json
from hubqueue.cli.mistakes import Whole
from hubqueue.cli.named import find_entries, find_run, no_entry, no_run
from hubqueue.domain.account import origin
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import plural


@click.command()
@click.argument("entries", type=Whole(), nargs=-1, metavar="[ENTRY]...")
@click.option("--all", "everything", is_flag=True, help="Every rejected entry.")
@pass_place
def redrive(place: Place, entries: tuple[int, ...], everything: bool) -> None:
    """Retry rejected (dead) entries.

    An entry replaced by a newer one is not sent: an old value never overwrites a newer one.

    \b
    Examples:
      hubqueue redrive 42 43
      hubqueue redrive --all
    """
    if bool(entries) == everything:
        raise click.UsageError("name the entries, or say --all")
    if entries and not place.has_outbox():
        no_entry(entries[0])
    with place.open() as outbox:
        untouched = _untouched(find_entries(outbox, entries), State.DEAD)
        back, outdated = outbox.entries.redrive(ids=None if everything else entries)
        outbox.discard(outdated)
    click.echo(
        f"{plural(back.count, 'entry', 'entries')} will be sent again"
        + (f", {outdated.count} replaced by newer ones" if outdated.count else "")
    )
    leave(ATTENTION if untouched else DONE)


@click.command()
@click.argument("entries", type=Whole(), nargs=-1, metavar="[ENTRY]...")
@click.option("--run", "run_id", metavar="ID", help="Everything of this run that is not delivered.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_place
def cancel(place: Place, entries: tuple[int, ...], run_id: str | None, yes: bool) -> None:
    """Drop entries: never send them, and delete their checkpoint copies.

    \b
    Examples:
      hubqueue cancel 42
      hubqueue cancel --run 0bf51cd3352d
    """
    if bool(entries) == (run_id is not None):
        raise click.UsageError("name the entries, or a run with --run")
    if not place.has_outbox():
        no_run(run_id) if run_id is not None else no_entry(entries[0])
    with place.open() as outbox:
        run_id = find_run(outbox, run_id)
        untouched = _untouched(find_entries(outbox, entries), State.PENDING, State.DEAD)
        if not yes and sys.stdin.isatty():
            what = f"everything of run {run_id} that is not delivered"
            what = what if run_id else plural(len(entries), "entry", "entries")
            click.confirm(f"Drop {what}?", abort=True)
        gone = outbox.entries.cancel(ids=entries, run_id=run_id)
        outbox.discard(gone)
    click.echo(f"{plural(gone.count, 'entry', 'entries')} cancelled")
    leave(DONE if gone.count and not untouched else ATTENTION)


def _untouched(entries: list[dict[str, Any]], *movable: State) -> int:
    """Say which of these entries stay as they are, and why; how many."""
    wrong = [each for each in entries if each["state"] not in movable]
    for each in wrong:
        wanted = " or ".join(str(state) for state in movable)
        click.echo(f"entry {each['id']} is {each['state']}, not {wanted}", err=True)
    return len(wrong)


@click.command()
@click.argument("destination")
@pass_place
def resume(place: Place, destination: str) -> None:
    """Lift the hold of a destination and of its runs, and try again now instead of after the backoff.

    Rate limits and a wait requested by the hub (429) still apply.

    \b
    Example:
      hubqueue resume hub
    """
    target = place.config().destination(destination)
    with place.open() as outbox:
        lifted = outbox.registry.resume(target.name)
    if lifted.destination is None and not lifted.runs:
        click.echo(f"nothing was on hold at {target.name}; what is waiting is tried now")
    else:
        parts = [f"destination {target.name}"] if lifted.destination else []
        parts += [plural(lifted.runs, "run")] if lifted.runs else []
        click.echo(" and ".join(parts) + " no longer on hold")


@click.command()
@click.argument("destination")
@pass_place
def login(place: Place, destination: str) -> None:
    """Store a key for a destination at its address, in credentials.toml (mode 0600), and lift its hold.

    The key is asked for on a terminal and read from standard input otherwise, a line for each secret where a destination
    needs several; it is never an argument. It is sent to that address only. Runs that were started with the key it replaces, or whose key was refused, go with this one.

    \b
    Examples:
      hubqueue login hub
      hubqueue login hub < key.txt
    """
    from hubqueue.config.credentials import own_variables, usual_variables
    from hubqueue.config.declaration import Key
    from hubqueue.config.registry import absent, declaration
    from hubqueue.worker.readdressing import log_in

    target = place.config().destination(destination)
    where = f"{target.name} ({origin(target.url)})"
    if (missing := absent(target.type)) is not None:
        raise missing.error
    names = [each.name for each in declaration(target.type).secrets]
    if not names:
        raise click.UsageError(f"destination {target.name} needs no key")
    first, *others = [_asked(name, where) for name in names]
    key = Key(first, dict(zip(names[1:], others, strict=True)))
    with place.open() as outbox:
        moved = log_in(outbox, target, key)
        tried_first = next(iter(outbox.credentials.keys(target)))
    click.echo(f"Key for {where} saved. Test it with: hubqueue check")
    if moved:
        click.echo(f"{plural(moved, 'run')} of the key before will be sent with this one")
    if tried_first.parts != key.parts:
        set_too = [
            name
            for name in (*own_variables(target), *usual_variables(target.type))
            if name and os.environ.get(name)
        ]
        click.echo(f"note: {' and '.join(set_too)} is also set and takes precedence", err=True)


def _asked(secret: str, where: str) -> str:
    """One secret, from the terminal or the next line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    shown = f"{secret.replace('_', ' ').capitalize()} for {where}"
    return str(click.prompt(shown, hide_input=True, err=True)).strip()


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option("--run", "run_id", metavar="ID", help="Only this run.")
@click.option("--to", "destination", metavar="DESTINATION", help="The destination [default: the same one].")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_place
def readdress(
    place: Place, addresses: tuple[str, ...], run_id: str | None, destination: str | None, yes: bool
) -> None:
    """Send runs to the address and with the key that this shell has, instead of those they were started for.

    ADDRESS is what `hubqueue status` and `hubqueue check` name for such runs. A model that only the first address knows
    stays unknown at the new one.

    \b
    Examples:
      hubqueue readdress hub
      hubqueue readdress --run 0bf51cd3352d
    """
    from hubqueue.worker.readdressing import moves

    if bool(addresses) == (run_id is not None):
        raise click.UsageError("name the addresses, or a run with --run")
    with place.open() as outbox:
        run_id = find_run(outbox, run_id)
        # All of them are checked before the first one is carried out.
        for move in list(moves(outbox, addresses, run_id=run_id, to=destination)):
            if not yes and sys.stdin.isatty():
                click.confirm(f"Send {plural(move.runs, 'run')} of {move.source} to {move.goal}?", abort=True)
            click.echo(f"{plural(move.carry_out(), 'run')} of {move.source} will be sent to {move.goal}")


@click.command()
@pass_place
def prune(place: Place) -> None:
    """Delete finished entries and attempts that are older than the configuration keeps them.

    The worker does this by itself; counts in the status stay as they are.

    \b
    Example:
      hubqueue prune
    """
    from hubqueue.worker import log as journal
    from hubqueue.worker.janitor import Janitor

    with place.open() as outbox:
        gone = Janitor(outbox, journal.write).prune()
    click.echo(f"{plural(gone, 'row')} deleted")


@click.command()
@pass_place
def migrate(place: Place) -> None:
    """Update the database schema. Other commands do this automatically; this one reports the revision.

    \b
    Example:
      hubqueue migrate
    """
    with place.open() as outbox:
        described = outbox.database.describe()
    click.echo(f"{described['url']} is at revision {described['revision']}")


@click.command()
@click.option("--offline", is_flag=True, help="Do not contact the hubs.")
@click.option("--set-aside", is_flag=True, help="Rename an outbox that cannot be read, and start a new one.")
@json_option
@pass_place
def check(place: Place, offline: bool, set_aside: bool, as_json: bool) -> None:
    """Find every problem of the configuration, the outbox, the spool, the credentials and the destinations.

    \b
    Examples:
      hubqueue check
      hubqueue check --offline --json
    """
    from hubqueue.worker.check import examine

    findings = examine(place.home_option, place.config_option, online=not offline, set_aside=set_aside)
    if as_json:
        print_json(
            [
                {
                    "what": each.what,
                    "ok": each.ok,
                    "warning": each.warning,
                    "detail": each.detail,
                    "hint": each.hint,
                }
                for each in findings
            ]
        )
    else:
        for each in findings:
            mark = click.style("ok  ", fg="green") if each.ok else click.style("FAIL", fg="red", bold=True)
            mark = click.style("warn", fg="yellow") if each.warning else mark
            click.echo(f"{mark}  {each.what:<13} {each.detail}")
            if each.hint and not each.ok:
                click.echo(f"      {'':<13} {each.hint}")
    wrong = [each for each in findings if not each.ok]
    if any(each.what == "configuration" for each in wrong):
        leave(USAGE)
    leave(ATTENTION if wrong else DONE)
