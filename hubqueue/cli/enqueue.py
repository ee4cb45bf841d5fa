"""`hubqueue enqueue`: save the metrics and checkpoints of a run from a shell script."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from hubqueue.cli.arguments import HomeOptions, Number, Whole, find_runs, pass_options
from hubqueue.cli.errors import SuggestingGroup
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import InvalidArgument, InvalidMetrics, InvalidModel, RunFinished
from hubqueue.domain.lifecycle import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hubqueue.config.declaration import Destination
    from hubqueue.domain.drafts import Position
    from hubqueue.outbox.outbox import Outbox

_run = click.option(
    "--run", "run_id", required=True, metavar="ID", help="The run, as `hubqueue enqueue run` printed it."
)
_epoch = click.option("--epoch", type=Whole(min=0), metavar="N", help="The epoch, counted from 0.")
_step = click.option(
    "--step",
    type=Whole(min=0),
    metavar="N",
    help="The step, counted from 0: instead of the epoch, or with it.",
)


@click.group(cls=SuggestingGroup)
def enqueue() -> None:
    """Save metrics and checkpoints from a shell script.

    A worker or `hubqueue drain` sends them.

    \b
    Examples:
      RUN=$(hubqueue enqueue run yolov8n.pt --arg epochs=100)
      hubqueue enqueue metrics --run $RUN --epoch 0 train/box_loss=1.2
      hubqueue enqueue checkpoint --run $RUN --epoch 0 last.pt
      hubqueue enqueue end --run $RUN
    """


@enqueue.command("run")
@click.argument("model")
@click.option(
    "--arg",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A training argument, such as epochs=100. Repeatable.",
)
@click.option(
    "--to",
    "destinations",
    multiple=True,
    metavar="DESTINATION",
    help="The destination [default: the configured one]. Repeatable: each gets everything.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="The name of the run, 1 to 128 characters [default: the model and the id of the run].",
)
@pass_options
def run(
    options: HomeOptions,
    model: str,
    pairs: tuple[str, ...],
    destinations: tuple[str, ...],
    name: str | None,
) -> None:
    """Start a run for MODEL, and print its id.

    MODEL is a file, a model URL or a model id. Runs started from a shell send no heartbeats: hubqueue cannot see
    whether the script is still running. With several destinations the id is that of the first one; the other commands
    take it for all of them.

    \b
    Examples:
      RUN=$(hubqueue enqueue run yolov8n.pt --arg epochs=100 --arg data=coco8.yaml)
      RUN=$(hubqueue enqueue run resnet50.pt --to tracking --to bucket)
    """
    from hubqueue.config.choice import choose_all
    from hubqueue.config.registry import declaration
    from hubqueue.producer.called_with import destination_names, run_name
    from hubqueue.producer.several.shell import open_runs

    names, run_named = destination_names(destinations or None), run_name(name)
    with options.open() as outbox:
        targets = choose_all(outbox.config, outbox.credentials, names, model=model, guess=False)
        found = [(each, declaration(each.type).identify(model, each)) for each in targets]
        for target, identified in found:
            if identified.api_key:
                hint = f"store it with `hubqueue login {target.name}`, and give the model by its id: {identified.model_id}"
                problem = "do not pass a key on the command line: other users of this machine can see it"
                raise InvalidModel(problem, hint=hint)
        click.echo(open_runs(outbox, found, _pairs(pairs), name=run_named)[0])


@enqueue.command("metrics")
@_run
@_epoch
@_step
@click.argument("pairs", nargs=-1, metavar="[NAME=VALUE]...")
@pass_options
def metrics(
    options: HomeOptions, run_id: str, epoch: int | None, step: int | None, pairs: tuple[str, ...]
) -> None:
    """Save the metrics of one epoch or step.

    Give them as NAME=VALUE, or as a JSON object on standard input.

    \b
    Examples:
      hubqueue enqueue metrics --run $RUN --epoch 3 train/box_loss=1.2 'metrics/mAP50(B)=0.4'
      hubqueue enqueue metrics --run $RUN --step 1200 loss=0.3
      echo '{"train/box_loss": 1.2}' | hubqueue enqueue metrics --run $RUN --epoch 3
    """
    from hubqueue.domain.drafts import metrics_draft
    from hubqueue.producer.intake import owe
    from hubqueue.producer.metrics import metrics_text

    at = _position(epoch, step)
    values = _pairs(pairs) if pairs else _read_json()
    with options.open() as outbox:
        runs = _open_runs(outbox, run_id, Kind.METRICS)
        _check_types(runs, at)
        text = metrics_text(values)
        entry_ids = [
            owe(outbox, each, metrics_draft(text, *at, takes_steps=declared.takes_steps))[0]
            for each, declared in runs.items()
        ]
    _print_entries(entry_ids)


@enqueue.command("checkpoint")
@_run
@_epoch
@_step
@click.option("--best", is_flag=True, help="This is the best checkpoint so far.")
@click.option(
    "--final",
    is_flag=True,
    help="This is the last checkpoint of the run: it does not wait for the rate limit.",
)
@click.option(
    "--map",
    "score",
    type=Number(min=0, max=1),
    metavar="SCORE",
    default=0.0,
    show_default=True,
    help="mAP50-95 of a final checkpoint, from 0 to 1.",
)
@click.option(
    "--archive", is_flag=True, help="Save a folder as one tar, for a destination that takes one file."
)
@click.argument("path", type=click.Path())
@pass_options
def checkpoint(
    options: HomeOptions,
    run_id: str,
    epoch: int | None,
    step: int | None,
    best: bool,
    final: bool,
    score: float,
    archive: bool,
    path: str,
) -> None:
    """Save a private copy of a checkpoint: the file or folder PATH. It may change or be deleted afterwards.

    \b
    Examples:
      hubqueue enqueue checkpoint --run $RUN --epoch 99 --final --map 0.51 best.pt
      hubqueue enqueue checkpoint --run $RUN --step 1200 --archive checkpoints/step-1200
    """
    from hubqueue.domain.drafts import Checkpoint
    from hubqueue.outbox.spool.source import is_folder
    from hubqueue.producer import metrics as values
    from hubqueue.producer.several.shell import save_snapshots

    at = _position(epoch, step)
    with options.open() as outbox:
        runs = _open_runs(outbox, run_id, Kind.CKPT)
        _check_types(runs, at)
        number = values.score("map", score, strict=True)
        saved = Checkpoint(
            path, at.epoch, is_best=best, map=number, final=final, archive=archive, step=at.step
        )
        if is_folder(path) and not archive:
            takers = {each: declared for each, declared in runs.items() if declared.takes_folders}
            for each in runs if takers else ():
                if each not in takers:
                    click.echo(
                        f"warning: run {each} gets no folder: its destination takes one file", err=True
                    )
            runs = takers or runs
        entry_ids = save_snapshots(outbox, runs, saved)
    _print_entries(entry_ids)


@enqueue.command("end")
@_run
@click.option("--failed", is_flag=True, help="Mark the run as failed instead of finished.")
@pass_options
def end(options: HomeOptions, run_id: str, failed: bool) -> None:
    """Mark the run as finished, or as failed. What it has saved is still sent.

    \b
    Example:
      hubqueue enqueue end --run $RUN
    """
    from hubqueue.worker.closing import close_run

    with options.open() as outbox:
        state = RunState.FAILED if failed else RunState.FINISHED
        ended = {each: close_run(outbox, each, state) for each in find_runs(outbox, run_id)}
    for each, recorded in ended.items():
        click.echo(f"run {each} is {state}" if recorded else f"run {each} had already ended")


def _position(epoch: int | None, step: int | None) -> Position:
    from hubqueue.producer.metrics import position

    if epoch is None and step is None:
        raise click.UsageError("one of the options --epoch and --step is missing")
    return position(epoch, step)


def _check_types(runs: Mapping[str, Destination], at: Position) -> None:
    """Raise what is wrong with a package that is not here: the key of a step depends on its type."""
    from hubqueue.config.registry import absent

    for each in runs.values() if at.step is not None else ():
        if (missing := absent(each.type)) is not None:
            raise missing.error


def _open_runs(outbox: Outbox, given: str, kind: Kind) -> dict[str, Destination]:
    """The runs of a training that accept more entries of a kind, each with the type of its destination.

    As in Python, an ended run accepts none. A destination that takes no such entries is left out, with a warning, if
    another one takes them.
    """
    from hubqueue.config.registry import of_row

    found: dict[str, Destination] = {}
    without: list[str] = []
    for run in outbox.stats.runs(run_id=find_runs(outbox, given)):
        state = run["state"]
        if state in {RunState.FINISHED, RunState.FAILED}:
            raise RunFinished(
                f"run {run['id']} is {state}", hint="start a new run: hubqueue enqueue run MODEL"
            )
        if kind in {lane["kind"] for lane in run["lanes"]}:
            found[run["id"]] = of_row(run["type"])
        else:
            without.append(run["label"])
    if not found:
        hint = "start the run for another destination: hubqueue enqueue run --to DESTINATION MODEL"
        raise InvalidArgument(f"destination {' and '.join(without)} takes no {kind}", hint=hint)
    for each in without:
        click.echo(f"warning: destination {each} takes no {kind}", err=True)
    return found


def _print_entries(entry_ids: list[int]) -> None:
    for each in entry_ids:
        click.echo(f"entry {each}")


def _pairs(pairs: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _read_json() -> dict[str, object]:
    if sys.stdin.isatty():
        click.echo(
            'reading JSON such as {"train/loss": 1.2} from the terminal; Ctrl-D ends the input', err=True
        )
    try:
        value = json.load(sys.stdin)
    except ValueError as error:
        raise InvalidMetrics(
            f"standard input is not JSON: {error}",
            hint='give NAME=VALUE, or {"NAME": VALUE} on standard input',
        ) from error
    if not isinstance(value, dict):
        raise InvalidMetrics(
            "standard input is not a JSON object", hint='the expected form is {"NAME": VALUE}'
        )
    return value
