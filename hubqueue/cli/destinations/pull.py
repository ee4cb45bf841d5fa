"""`hubqueue pull`: a checkpoint back from a destination, and the list of what is there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from hubqueue.cli.arguments import HomeOptions, json_option, pass_options
from hubqueue.cli.destinations.options import homes, run_option
from hubqueue.cli.destinations.progress import Bar
from hubqueue.cli.frame import print_json
from hubqueue.cli.screen import table, visible
from hubqueue.domain.quantities import plural, size
from hubqueue.domain.redact import clean, harmless

if TYPE_CHECKING:
    from hubqueue.domain.snapshots.stored import StoredCheckpoint


@click.command()
@click.argument("destination")
@run_option(required=False)
@click.option(
    "--which",
    metavar="WHICH",
    default="latest",
    show_default=True,
    help="latest, best, final, epoch:N or step:N.",
)
@click.option(
    "--to",
    "directory",
    type=click.Path(),
    metavar="DIR",
    help="Put the checkpoint into this folder [default: the run's name, in the current folder].",
)
@click.option("--force", is_flag=True, help="Replace something else that is at its path.")
@click.option("--list", "listing", is_flag=True, help="List the runs; with --run, its checkpoints.")
@json_option
@pass_options
def pull(
    options: HomeOptions,
    destination: str,
    run: str | None,
    which: str,
    directory: str | None,
    force: bool,
    listing: bool,
    as_json: bool,
) -> None:
    """Download a checkpoint, whole and verified.

    It prints the path: DIR/epoch-0012.pt for a checkpoint of one file, DIR/epoch-0012 for a folder. Nothing is at that
    path before every file has arrived with its size and SHA-256. After an interruption, the same command continues. A
    checkpoint that is already there is not downloaded again.

    \b
    Exit codes:
      0  the checkpoint is at the printed path
      1  the destination does not have it, has it damaged or cannot be
         reached, or it cannot be written here
      2  usage or configuration, or something else is at its path

    \b
    Examples:
      hubqueue pull bucket --list
      hubqueue pull bucket --run resnet50-0bf51cd3352d --list
      hubqueue pull bucket --run resnet50-0bf51cd3352d --which best --to ckpt
    """
    if listing:
        _list(options, destination, run, as_json)
        return
    if run is None:
        raise click.UsageError(
            f"name the run with --run: hubqueue pull {visible(destination)} --list shows them"
        )
    from hubqueue.retrieval.pull import retrieve

    with Bar(sys.stderr, "pull") as bar:
        found = retrieve(
            destination, run=run, which=which, to=directory, force=force, progress=bar.show, **homes(options)
        )
    pulled, checkpoint = found.pulled, found.checkpoint
    if as_json:
        shown = {"path": str(pulled.path), "run": found.run, "checkpoint": _row(checkpoint)}
        print_json(harmless({**shown, "received": pulled.received, "resumed": pulled.resumed}))
        return
    click.echo(str(pulled.path))
    was_here = "; it was here already" if not pulled.received and checkpoint.size else ""
    if pulled.received and pulled.resumed:
        was_here = f"; {size(pulled.resumed)} of it were here already"
    counted = f"{plural(len(checkpoint.files), 'file')}, {size(checkpoint.size)}"
    click.echo(f"{clean(checkpoint.name)} of {clean(found.run)}: {counted}, verified{was_here}", err=True)


def _list(options: HomeOptions, destination: str, run: str | None, as_json: bool) -> None:
    from hubqueue.retrieval.pull import checkpoints_of, runs_at

    if run is None:
        runs = runs_at(destination, **homes(options))
        rows = [{"name": each.name, "id": each.id, "model": each.model, "state": each.state} for each in runs]
        if as_json:
            print_json(harmless({"destination": destination, "runs": rows}))
        elif rows:
            click.echo(table(("RUN", "ID", "MODEL", "STATE"), [_cells(row) for row in rows]))
        else:
            click.echo(f"{destination} has no runs yet")
        return
    name, checkpoints = checkpoints_of(destination, run=run, **homes(options))
    if as_json:
        found = [_row(each) for each in checkpoints]
        print_json(harmless({"destination": destination, "run": name, "checkpoints": found}))
    elif checkpoints:
        headings = ("CHECKPOINT", "EPOCH", "STEP", "SIZE", "FILES", "KIND", "MAP")
        click.echo(table(headings, [_cells(_shown(_row(each))) for each in checkpoints]))
    else:
        click.echo(f"run {clean(name)} has no whole checkpoint at {destination} yet")


def _row(checkpoint: StoredCheckpoint) -> dict[str, Any]:
    flags = {
        "latest": checkpoint.is_latest,
        "best": checkpoint.is_best,
        "final": checkpoint.is_final,
    }
    return {
        "name": checkpoint.name,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "size": checkpoint.size,
        "files": len(checkpoint.files),
        "is_folder": checkpoint.is_folder,
        "kinds": [word for word, is_so in flags.items() if is_so],
        "map": checkpoint.map or None,
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """The same for a person: one column each."""
    names = ("name", "epoch", "step", "size", "files", "kinds", "map")
    return {name: row[name] for name in names} | {"size": size(row["size"]), "kinds": ", ".join(row["kinds"])}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple("" if each is None else clean(str(each), limit=100) for each in row.values())
