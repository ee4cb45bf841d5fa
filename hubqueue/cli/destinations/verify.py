"""`hubqueue verify`: whether a destination still has what was delivered to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hubqueue.cli.arguments import HomeOptions, json_option, pass_options
from hubqueue.cli.destinations.options import homes, run_option
from hubqueue.cli.destinations.progress import Bar
from hubqueue.cli.frame import ATTENTION, DONE, exit_with, print_json
from hubqueue.cli.screen import fit, visible
from hubqueue.domain.quantities import plural, size
from hubqueue.domain.redact import clean, harmless

if TYPE_CHECKING:
    from hubqueue.retrieval.verify import Difference, Verification, Verified


@click.command()
@click.argument("destination")
@run_option(required=True)
@click.option(
    "--which",
    metavar="WHICH",
    default="all",
    show_default=True,
    help="all, latest, best, final, epoch:N or step:N.",
)
@click.option("--read", is_flag=True, help="Read every byte, also where the destination states a hash.")
@json_option
@pass_options
def verify(options: HomeOptions, destination: str, run: str, which: str, read: bool, as_json: bool) -> None:
    """Compare the checkpoints of a run with what was saved.

    It asks the destination for every file, and compares size and SHA-256 with the manifest there and with the entries
    of this home, if it has them. Without --read, the bytes are read only where the destination states no hash.

    \b
    Exit codes:
      0  everything is there as it was saved
      1  something differs, with a line for each; or the destination cannot
         be reached
      2  usage or configuration

    \b
    Examples:
      hubqueue verify bucket --run resnet50-0bf51cd3352d
      hubqueue verify bucket --run resnet50-0bf51cd3352d --which latest --read
    """
    from hubqueue.retrieval.verify import verify as compare

    with Bar(sys.stderr, "verify") as bar:
        found = compare(destination, run=run, which=which, read=read, progress=bar.show, **homes(options))
    if as_json:
        print_json(harmless(_described(found)))
    else:
        _show(found)
    exit_with(DONE if found else ATTENTION)


def _show(found: Verification) -> None:
    names = [clean(each.name) for each in found.checkpoints] + [each.checkpoint for each in found.missing]
    width = max(map(len, names), default=0)
    for each in found.checkpoints:
        how = "all bytes read" if each.read else "by the hashes that the destination states"
        recorded = ", and as recorded in this home" if each.recorded else ""
        text = f"{plural(each.files, 'file')}, {size(each.size)}, {how}{recorded}"
        _line(each.name, text if each else plural(len(each.differences), "difference"), width, ok=bool(each))
        for difference in each.differences:
            what = f"{difference.path}: {difference.what}" if difference.path else difference.what
            click.echo(f"      {visible(what)}")
    for missing in found.missing:
        _line(missing.checkpoint, missing.what, width, ok=False)
    if not names:
        click.echo(f"run {clean(found.run)} has no whole checkpoint at {found.destination} yet")


def _line(name: str, text: str, width: int, *, ok: bool) -> None:
    mark = click.style("ok  ", fg="green") if ok else click.style("FAIL", fg="red", bold=True)
    click.echo(fit(f"{mark}  {clean(name).ljust(width)}  {text}"))


def _described(found: Verification) -> dict[str, object]:
    return {
        "destination": found.destination,
        "run": found.run,
        "ok": bool(found),
        "checkpoints": [_of(each) for each in found.checkpoints],
        "missing": [_plain(each) for each in found.missing],
    }


def _of(each: Verified) -> dict[str, object]:
    counted = {"files": each.files, "size": each.size, "read": each.read, "recorded": each.recorded}
    return {
        "name": each.name,
        "ok": bool(each),
        **counted,
        "differences": list(map(_plain, each.differences)),
    }


def _plain(each: Difference) -> dict[str, str]:
    return {"checkpoint": each.checkpoint, "path": each.path, "what": each.what}
