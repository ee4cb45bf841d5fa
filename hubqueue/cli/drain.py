"""`hubqueue drain`, and its progress on a terminal: entries sent, the bytes of each upload, and why it waits."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO

import click

from hubqueue.cli.arguments import HomeOptions, Seconds, find_runs, pass_options, refuse_run, run_option
from hubqueue.cli.frame import ATTENTION, DONE, LEFT, exit_with
from hubqueue.cli.screen import cut, until
from hubqueue.cli.worker import log_to, stop_on_signal
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import plural

if TYPE_CHECKING:
    from tqdm import tqdm

    from hubqueue.outbox.outbox import Outbox
    from hubqueue.outbox.stats import Owed
    from hubqueue.outbox.uploads import Upload
    from hubqueue.worker.service import Service

_MOST_LISTED = 3
_EXPLAIN_EVERY = 1.0


@click.command()
@click.option(
    "--timeout", type=Seconds(min=0), metavar="SECONDS", help="Stop after SECONDS, whatever is left."
)
@run_option
@pass_options
def drain(options: HomeOptions, timeout: float | None, run_id: str | None) -> None:
    """Send what is waiting now, and wait until it is done.

    It keeps the rate limits. With --run it waits only for that run, at all of its destinations. It can run beside a
    worker, and shows the worker's uploads. It exits when all that is left is on hold. A periodic checkpoint waits for
    its rate limit (900 s): use --timeout to bound the wait.

    \b
    Exit codes:
      0  everything is delivered
      1  the hub has refused entries, now or earlier (retry them with
         `redrive`, drop them with `cancel`), or a training could not save
      3  something is left to send, and nothing was refused

    \b
    Examples:
      hubqueue drain
      hubqueue drain --timeout 300 || hubqueue status
    """
    from hubqueue.outbox.database.sqlite import asides
    from hubqueue.outbox.outbox import COURTESY
    from hubqueue.worker import log as journal
    from hubqueue.worker.service import Service, nothing_left

    if not options.has_outbox() and not asides(options.home().outbox):
        if run_id is not None:
            refuse_run(run_id)
        click.echo("nothing was enqueued here yet")
        exit_with(DONE)
    deadline = None if timeout is None else time.monotonic() + timeout
    with options.open(courtesy=COURTESY) as outbox, ExitStack() as at_end:
        log_to(None, logging.ERROR)
        runs = find_runs(outbox, run_id)
        service = Service(outbox, emit=journal.write)
        progress = at_end.enter_context(_progress(outbox, service, runs))
        stop_on_signal(service)
        service.detect()  # a killed training owes its end, a damaged outbox its entries
        progress.show(outbox.stats.owed(runs))
        if outbox.stats.owed(runs).entries:
            grace = None if deadline is None else timedelta(0)
            reason = service.run(
                until=nothing_left(
                    outbox, service.worker, run_id=runs, deadline=deadline, report=progress.show
                ),
                every=0.1,
                grace=grace,
            )
        else:
            reason = "nothing to send"
        left = outbox.stats.owed(runs)
        dead, unsaved = outbox.stats.dead(runs), outbox.stats.unsaved(runs)
        refused = outbox.stats.entries(state=State.DEAD, run_id=runs, limit=_MOST_LISTED) if dead else []
    if dead:
        click.echo(f"{plural(dead, 'entry was', 'entries were')} refused by the hub", err=True)
        for each in refused:
            where = f"entry {each['id']} of run {each['run_id']}, {each['kind']} {each['key']}"
            click.echo(f"  {where}: {each['reason']}", err=True)
        if dead > len(refused):
            click.echo(f"  and {dead - len(refused)} more", err=True)
        click.echo("hint: hubqueue entries --state dead", err=True)
    if unsaved:
        click.echo(f"{unsaved} could not be saved by the training, and are lost: hubqueue status", err=True)
    if left.entries:
        click.echo(f"{plural(left.entries, 'upload')} not sent: {reason}", err=True)
        interrupted = reason == "interrupted"
        then = "they are saved; continue with: hubqueue drain" if interrupted else "hubqueue status shows why"
        click.echo(f"hint: {then}", err=True)
    elif not (dead or unsaved):
        click.echo(reason)
    exit_with(ATTENTION if dead or unsaved else LEFT if left.entries else DONE)


def _progress(outbox: Outbox, service: Service, runs: Collection[str] | None) -> Progress:
    from hubqueue.outbox.status import status
    from hubqueue.outbox.uploads import uploads

    def running() -> Iterator[tuple[str, Upload]]:
        return (each for each in uploads(outbox.home) if runs is None or each[0] in runs)

    def explain() -> str | None:
        return why_waiting(
            status(outbox, run_id=runs), sending=service.worker.busy > 0, now=datetime.now(UTC)
        )

    return Progress(sys.stderr, uploads=running, explain=explain)


class Progress:
    """A bar for the entries, a bar for each upload and a line of explanation. Silent if `stream` is no terminal.

    `uploads` finds the running uploads of all processes. `explain` returns why nothing is being sent, or None.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        uploads: Callable[[], Iterator[tuple[str, Upload]]],
        explain: Callable[[], str | None],
    ) -> None:
        self._stream, self._find, self._explain = stream, uploads, explain
        self._silent = stream is None or not stream.isatty()  # there is none when stderr is closed
        self._entries: tqdm[NoReturn] | None = None
        self._line: tqdm[NoReturn] | None = None
        self._uploads: dict[str, tqdm[NoReturn]] = {}
        self._explain_at = 0.0

    def show(self, owed: Owed) -> None:
        """Show how much is left. The bar grows if something is enqueued meanwhile."""
        if self._silent:
            return
        bar = self._entries = self._entries or self._new(
            total=owed.entries, desc="entries", bar_format="{desc}: {n}/{total} |{bar}| {elapsed}"
        )
        total = int(bar.total or 0)
        if owed.entries > total - bar.n:
            bar.total = bar.n + owed.entries
        bar.n = max(bar.n, int(bar.total or 0) - owed.entries)
        bar.refresh()
        self._show_uploads(dict(self._find()))
        if time.monotonic() >= self._explain_at:
            self._explain_at = time.monotonic() + _EXPLAIN_EVERY
            self._show_reason(self._explain())

    def _show_uploads(self, running: Mapping[str, Upload]) -> None:
        for ended in self._uploads.keys() - running.keys():
            self._uploads.pop(ended).close()
        for run_id, upload in running.items():
            bar = self._uploads.get(run_id)
            if bar is None:
                options: dict[str, Any] = {"unit": "B", "unit_scale": True, "initial": upload.sent}
                bar = self._new(total=upload.size, desc=f"{Kind.CKPT} of {run_id}", leave=False, **options)
                self._uploads[run_id] = bar
            bar.total, bar.n = upload.size, upload.sent
            bar.refresh()

    def _show_reason(self, text: str | None) -> None:
        if self._line is None:
            if text is None:
                return
            self._line = self._new(total=0, bar_format="{desc}", leave=False)
        self._line.set_description_str(cut(text or "", (self._line.ncols or 80) - 1))

    def _new(self, **options: Any) -> tqdm[NoReturn]:
        from tqdm import tqdm

        return tqdm(file=self._stream, dynamic_ncols=True, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in (self._line, *self._uploads.values(), self._entries):
            if bar is not None:
                bar.close()


def why_waiting(status: Mapping[str, Any], *, sending: bool, now: datetime) -> str | None:
    """Why a drain waits, read from the status. None while it is `sending` itself. `now` is UTC."""
    if sending:
        return None
    for destination in status["destinations"]:
        if destination["resumes_at"]:
            return f"rate-limited by {destination['name']}, resumes {until(destination['resumes_at'], now)}"
    waiting = [
        (run, lane) for run in status["runs"] for lane in run["lanes"] if lane["pending"] or lane["in_flight"]
    ]
    if any(lane["in_flight"] for _, lane in waiting):
        return "another worker is sending"
    for run, lane in waiting:
        if lane["last_error"] and lane["next_send_at"]:
            return f"{run['destination']}: {lane['last_error']}; next try {until(lane['next_send_at'], now)}"
    held = next((lane["held"] or run["held"] for run, lane in waiting if lane["held"] or run["held"]), None)
    due = min((lane["next_send_at"] for _, lane in waiting if lane["next_send_at"]), default=None)
    if due is not None:
        return f"waiting for the rate limit, next {until(due, now)}"
    return f"on hold: {held}" if held else None
