"""The progress of a drain: entries sent, the bytes of every running upload, and why it stands still. Only on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, TextIO

from tqdm import tqdm

from hubqueue.cli.screen import cut
from hubqueue.domain.entry import Kind
from hubqueue.outbox.stats import Owed
from hubqueue.outbox.uploads import Upload

_WHY_EVERY = 1.0


class Progress:
    """A bar of the entries with a bar for each upload and a line of explanation. Silent where `stream` is no terminal.

    `uploads` finds the running uploads, whoever sends them; `why` says why nothing moves, if nothing does.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        uploads: Callable[[], Iterator[tuple[str, Upload]]],
        why: Callable[[], str | None],
    ) -> None:
        self._stream, self._find, self._explain = stream, uploads, why
        self._silent = not stream.isatty()
        self._entries: tqdm[NoReturn] | None = None
        self._line: tqdm[NoReturn] | None = None
        self._uploads: dict[str, tqdm[NoReturn]] = {}
        self._explain_at = 0.0

    def show(self, owed: Owed) -> None:
        """How much is left; the bar grows when something is enqueued meanwhile."""
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
            self._explain_at = time.monotonic() + _WHY_EVERY
            self._show_why(self._explain())

    def _show_uploads(self, running: Mapping[str, Upload]) -> None:
        for gone in self._uploads.keys() - running.keys():
            self._uploads.pop(gone).close()
        for run_id, upload in running.items():
            bar = self._uploads.get(run_id)
            if bar is None:
                options: dict[str, Any] = {"unit": "B", "unit_scale": True, "initial": upload.sent}
                bar = self._new(total=upload.size, desc=f"{Kind.CKPT} of {run_id}", leave=False, **options)
                self._uploads[run_id] = bar
            bar.total, bar.n = upload.size, upload.sent
            bar.refresh()

    def _show_why(self, text: str | None) -> None:
        if self._line is None:
            if text is None:
                return
            self._line = self._new(total=0, bar_format="{desc}", leave=False)
        self._line.set_description_str(cut(text or "", (self._line.ncols or 80) - 1))

    def _new(self, **options: Any) -> tqdm[NoReturn]:
        return tqdm(file=self._stream, dynamic_ncols=True, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in (self._line, *self._uploads.values(), self._entries):
            if bar is not None:
                bar.close()


def standstill(status: Mapping[str, Any], *, sending: bool, until: Callable[[str], str]) -> str | None:
    """Why a drain waits, out of the status; None while it is `sending` itself. `until` words a moment."""
    if sending:
        return None
    for destination in status["destinations"]:
        if destination["resumes_at"]:
            return f"rate-limited by {destination['name']}, resumes {until(destination['resumes_at'])}"
    waiting = [
        (run, lane) for run in status["runs"] for lane in run["lanes"] if lane["pending"] or lane["in_flight"]
    ]
    if any(lane["in_flight"] for _, lane in waiting):
        return "another worker is sending"
    for run, lane in waiting:
        if lane["last_error"] and lane["next_send_at"]:
            return f"{run['destination']}: {lane['last_error']}; next try {until(lane['next_send_at'])}"
    held = next((lane["held"] or run["held"] for run, lane in waiting if lane["held"] or run["held"]), None)
    due = min((lane["next_send_at"] for _, lane in waiting if lane["next_send_at"]), default=None)
    if due is not None:
        return f"waiting for the rate limit, next {until(due)}"
    return f"on hold: {held}" if held else None
