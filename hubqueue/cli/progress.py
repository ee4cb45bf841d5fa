"""The progress of a drain: entries left, and the bytes of the running upload. Only on a terminal."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import NoReturn, Self, TextIO

from tqdm import tqdm

from hubqueue import events
from hubqueue.entry import Kind
from hubqueue.events import Fact
from hubqueue.stats import Owed


class Progress:
    """Two bars that hear the worker's facts. Silent where `stream` is not a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = not stream.isatty()
        self._lock = threading.Lock()  # facts come from the sending threads
        self._entries: tqdm[NoReturn] | None = None
        self._uploads: dict[int, tqdm[NoReturn]] = {}

    def owed(self, owed: Owed) -> None:
        """How much is left; the bar grows when something is enqueued meanwhile."""
        with self._lock:
            if self._silent:
                return
            if self._entries is None:
                self._entries = tqdm(
                    total=owed.entries, desc="entries", unit="", file=self._stream, position=0
                )
            bar = self._entries
            done = max(0, (bar.total or 0) - owed.entries)
            if owed.entries > (bar.total or 0) - bar.n:
                bar.total = bar.n + owed.entries
                done = bar.n
            bar.n = max(bar.n, done)
            bar.set_postfix_str(f"{owed.held} held" if owed.held else "")
            bar.refresh()

    def hear(self, fact: Fact) -> None:
        """Show the bytes of an upload."""
        if self._silent or not isinstance(fact, events.UploadProgressed) or fact.size < 1 << 20:
            return
        with self._lock:
            bar = self._uploads.get(fact.attempt_id)
            if bar is None:
                bar = tqdm(
                    total=fact.size,
                    desc=str(Kind.CKPT),
                    unit="B",
                    unit_scale=True,
                    file=self._stream,
                    leave=False,
                )
                self._uploads[fact.attempt_id] = bar
            bar.n = min(fact.sent, fact.size)
            bar.refresh()
            if fact.sent >= fact.size:
                self._uploads.pop(fact.attempt_id).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for bar in (*self._uploads.values(), *([self._entries] if self._entries else [])):
                bar.close()
