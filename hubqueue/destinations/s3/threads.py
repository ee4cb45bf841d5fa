"""The threads that send the parts of one upload.

Promises at most `most` parts at a time, and that no thread of an upload is running when the context ends. After a failure no
further part begins; those that are being sent are finished, so that they need not be sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Generic, Self, TypeVar

from hubqueue.destinations.base import Attempt
from hubqueue.destinations.layout.store import obey

_T = TypeVar("_T")
# In seconds: how soon a stop of the attempt reaches the parts.
_INTERVAL = 0.2


class PartThreads(Generic[_T]):
    """A context manager. Its methods are called by the thread of the attempt."""

    def __init__(self, most: int, attempt: Attempt) -> None:
        self._most, self._attempt = most, attempt
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._results: list[_T] = []
        self._error: BaseException | None = None
        self._done = 0  # bytes of finished parts
        self._sent: dict[int, int] = {}  # bytes of the others, by number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and error is not self._error:
            self._stop.set()
        with self._changed:
            self._wait(lambda: not self._running)

    def skip(self, size: int) -> None:
        """A part is in the bucket already."""
        with self._changed:
            self._done += size
        self._report()

    def start(self, number: int, send: Callable[[Attempt], _T]) -> None:
        """Send a part in a thread of its own, as soon as there is room. Raises what an earlier part raised."""
        with self._changed:
            self._wait(lambda: self._running < self._most or self._error is not None)
            self._raise()
            self._running += 1
            self._sent[number] = 0
        one = replace(
            self._attempt,
            on_start=lambda: None,  # the attempt has started
            on_bytes=lambda sent: self._note(number, sent),
            on_progress=lambda _progress: None,
            stop=self._stop,
        )
        # A daemon, so that a part that hangs does not keep a training from ending.
        threading.Thread(
            target=self._run, args=(number, send, one), name="hubqueue-part", daemon=True
        ).start()

    def between(self) -> None:
        """Called between two blocks: raises what a part raised, and when the worker stops the attempt."""
        with self._changed:
            self._raise()
        obey(self._attempt)

    def finish(self) -> list[_T]:
        """Wait for all parts. Returns what they returned."""
        with self._changed:
            self._wait(lambda: not self._running)
            self._raise()
            return self._results

    def _run(self, number: int, send: Callable[[Attempt], _T], one: Attempt) -> None:
        result: list[_T] = []
        error: BaseException | None = None
        try:
            result.append(send(one))
        except BaseException as raised:
            error = raised
        with self._changed:
            self._results += result
            self._error = self._error or error
            self._done += self._sent.pop(number) if error is None else 0
            self._sent.pop(number, None)
            self._running -= 1
            self._changed.notify_all()

    def _wait(self, until: Callable[[], bool]) -> None:
        while not self._changed.wait_for(until, _INTERVAL):
            if self._attempt.stop.is_set():
                self._stop.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _note(self, number: int, sent: int) -> None:
        with self._changed:
            self._sent[number] = sent
        self._report()

    def _report(self) -> None:
        with self._changed:
            total = self._done + sum(self._sent.values())
        self._attempt.on_bytes(total)
