"""Commands that find and repair problems: redrive, cancel, resume, prune, migrate, check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from hubqueue.cli.arguments import (
    HomeOptions,
    Whole,
    find_entries,
    find_runs,
    json_option,
    pass_options,
    refuse_entry,
    refuse_run,
)
from hubqueue.cli.frame import ATTENTION, DONE, USAGE, exit_with, print_json
from hubqueue.cli.screen import visible
from hubqueue.domain.errors import UnknownName
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import plural

if TYPE_CHECKING:
    from hubqueue.outbox.outbox import Outbox


@click.command()
@click.argument("entries", type=Whole(), nargs=-1, metavar="[ENTRY]...")
@click.option("--all", "everything", is_flag=True, help="Every dead entry.")
@pass_options
def redrive(options: HomeOptions, entries: tuple[int, ...], everything: bool) -> None:
    """Retry entries that the hub has refused (dead entries).

    An entry that a newer one has replaced is not sent: an old value never overwrites a newer one.

    \b
    Examples:
      hubqueue redrive 42 43
      hubqueue redrive --all
    """
    if bool(entries) == everything:
        raise click.UsageError("name the entries, or give --all")
    if entries and not options.has_outbox():
        refuse_entry(entries[0])
    with options.open() as outbox:
        unmovable = _report_unmovable(find_entries(outbox, entries), State.DEAD)
        back, outdated = outbox.entries.redrive(ids=None if everything else entries)
        outbox.discard(outdated)
    click.echo(
        f"{plural(back.count, 'entry', 'entries')} will be sent again"
        + (f", {outdated.count} replaced by newer ones" if outdated.count else "")
    )
    exit_with(ATTENTION if unmovable else DONE)


@click.command()
@click.argument("entries", type=Whole(), nargs=-1, metavar="[ENTRY]...")
@click.option(
    "--run",
    "run_id",
    metavar="ID",
    help="Everything of this run that is not delivered, at all of its destinations.",
)
@click.option(
    "--to",
    "destination",
    metavar="DESTINATION",
    help="With --run: only what this destination has not received.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_options
def cancel(
    options: HomeOptions,
    entries: tuple[int, ...],
    run_id: str | None,
    destination: str | None,
    yes: bool,
) -> None:
    """Drop entries: they are never sent. Their checkpoint copies are deleted.

    On a terminal it asks for confirmation. In a script, where nobody can answer, it does not ask.

    \b
    Examples:
      hubqueue cancel 42
      hubqueue cancel --run 0bf51cd3352d
      hubqueue cancel --run 0bf51cd3352d --to bucket
    """
    if bool(entries) == (run_id is not None):
        raise click.UsageError("name the entries, or a run with --run")
    if destination is not None and run_id is None:
        raise click.UsageError("--to needs a run: --run ID")
    if not options.has_outbox():
        refuse_run(run_id) if run_id is not None else refuse_entry(entries[0])
    with options.open() as outbox:
        runs = _at(outbox, find_runs(outbox, run_id), destination)
        unmovable = _report_unmovable(find_entries(outbox, entries), State.PENDING, State.DEAD)
        if not yes and sys.stdin.isatty():
            everything = (
                f"everything of {' and '.join(f'run {each}' for each in runs or ())} that is not delivered"
            )
            what = everything if runs else plural(len(entries), "entry", "entries")
            click.confirm(f"Drop {what}?", abort=True)
        cancelled = outbox.entries.cancel(ids=entries, run_id=runs)
        outbox.discard(cancelled)
    click.echo(f"{plural(cancelled.count, 'entry', 'entries')} cancelled")
    exit_with(DONE if cancelled.count and not unmovable else ATTENTION)


def _at(outbox: Outbox, runs: list[str] | None, destination: str | None) -> list[str] | None:
    """Of the runs of a training, those at a destination (None: all). Raises `UnknownName` if there is none."""
    if runs is None or destination is None:
        return runs
    rows = {each: outbox.stats.run(each) for each in runs}
    found = [each for each, row in rows.items() if row is not None and row["label"] == destination]
    if not found:
        known = ", ".join(sorted({row["label"] for row in rows.values() if row is not None}))
        raise UnknownName(f"run {runs[0]} has no destination {destination}", hint=f"it has: {known}")
    return found


def _report_unmovable(entries: list[dict[str, Any]], *movable: State) -> int:
    """Report the entries that are in another state than `movable`; their number."""
    unmovable = [each for each in entries if each["state"] not in movable]
    for each in unmovable:
        wanted = " or ".join(str(state) for state in movable)
        click.echo(f"entry {each['id']} is {each['state']}, not {wanted}", err=True)
    return len(unmovable)


@click.command()
@click.argument("destination")
@pass_options
def resume(options: HomeOptions, destination: str) -> None:
    """Lift the hold of a destination and of its runs.

    What is waiting is retried now instead of after the backoff. Rate limits still apply, and so does a wait that the
    hub has requested (429).

    \b
    Example:
      hubqueue resume hub
    """
    target = options.config().destination(destination)
    with options.open() as outbox:
        lifted = outbox.registry.resume(target.name)
    if lifted.destination is None and not lifted.runs:
        click.echo(f"nothing was on hold at {target.name}; what is waiting is retried now")
    else:
        parts = [f"destination {target.name}"] if lifted.destination else []
        parts += [plural(lifted.runs, "run")] if lifted.runs else []
        click.echo(" and ".join(parts) + " no longer on hold")


@click.command()
@pass_options
def prune(options: HomeOptions) -> None:
    """Delete finished entries and attempts after their retention.

    Finished means delivered, superseded or cancelled; dead entries are kept. The settings outbox.keep_delivered and
    outbox.keep_attempts are the retention. The worker does this automatically. The counts in the status do not change.

    \b
    Example:
      hubqueue prune
    """
    from hubqueue.worker import log as journal
    from hubqueue.worker.janitor import Janitor

    with options.open() as outbox:
        deleted = Janitor(outbox, journal.write).prune()
    click.echo(f"{plural(deleted, 'row')} deleted")


@click.command()
@pass_options
def migrate(options: HomeOptions) -> None:
    """Upgrade the database schema, and print its revision. Other commands upgrade it automatically.

    \b
    Example:
      hubqueue migrate
    """
    with options.open() as outbox:
        described = outbox.database.describe()
    click.echo(f"{described['url']} is at revision {described['revision']}")


@click.command()
@click.option("--offline", is_flag=True, help="Do not contact the destinations.")
@click.option("--set-aside", is_flag=True, help="Rename an outbox that cannot be read, and start a new one.")
@click.option(
    "--new-spool",
    is_flag=True,
    help="Use the folder at spool.path as the spool, although the former one is gone for good.",
)
@json_option
@pass_options
def check(options: HomeOptions, offline: bool, set_aside: bool, new_spool: bool, as_json: bool) -> None:
    """Find every problem, with a hint for each.

    It examines the configuration, the outbox, the spool, the credentials and the destinations. A line that begins
    with `warn` does not change the exit code: for example a HUBQUEUE_ variable that nothing reads.

    \b
    Examples:
      hubqueue check
      hubqueue check --offline --json
    """
    from hubqueue.worker.check import examine

    findings = examine(
        options.home_option,
        options.config_option,
        online=not offline,
        set_aside=set_aside,
        new_spool=new_spool,
    )
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
            click.echo(f"{mark}  {each.what:<13} {visible(each.detail)}")
            if each.hint and (each.warning or not each.ok):
                click.echo(f"      {'':<13} {visible(each.hint)}")
    wrong = [each for each in findings if not each.ok]
    if any(each.what == "configuration" for each in wrong):
        exit_with(USAGE)
    exit_with(ATTENTION if wrong else DONE)
