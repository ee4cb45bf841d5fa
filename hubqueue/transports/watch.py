"""The watchdog: deadlines that hold against any peer.

A socket's own timeouts bound neither a peer that reads slowly nor one that drips its answer. So one thread
looks at every exchange a few times a second, and shuts the socket down when the exchange is too slow or has to
stop; the thread that is blocked in it then wakes with an error.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_LOOK = 0.2


@dataclass(eq=False, slots=True)
class Watch:
    """One exchange under watch. Times are in seconds, `rate` in bytes per second.

    Sending: at least `rate` on average over each `window`. Answering: complete within `answer` of the last
    request byte. `verdict` says why the exchange was ended, if it was.
    """

    stop: threading.Event
    window: float
    rate: float
    answer: float
    size: int
    on_bytes: Callable[[int], None]
    verdict: str | None = None
    stopped: bool = False
    _socket: socket.socket | None = None
    _sent: int = 0
    _mark_at: float = 0.0
    _mark_sent: int = 0
    _whole_by: float = float("inf")
    _answer_by: float = float("inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def opened(self, connection: socket.socket) -> None:
        """The connection stands, or is being made."""
        with self._lock:
            self._socket = connection
            if self.verdict is not None:
                self._shut()

    def sending(self) -> None:
        """The request is about to leave."""
        now = time.monotonic()
        self._mark_at, self._mark_sent = now, 0
        self._whole_by = now + self.window + self.size / self.rate

    def sent(self, count: int) -> None:
        """So many more bytes of the body have left."""
        self._sent += count
        self.on_bytes(self._sent)
        if self._sent >= self.size:
            self.answering()

    def answering(self) -> None:
        """The request is out; the answer is due."""
        self._mark_at, self._whole_by = 0.0, float("inf")
        self._answer_by = time.monotonic() + self.answer

    def look(self, now: float) -> None:
        """End the exchange if it has to end."""
        if self.verdict is None:
            reason = self._judge(now)
            if reason is not None:
                with self._lock:
                    self.verdict = reason
                    self._shut()

    def _judge(self, now: float) -> str | None:
        if self.stop.is_set():
            self.stopped = True
            return "the worker stops"
        if now > self._answer_by:
            return f"no complete answer within {self.answer:g} s"
        if now > self._whole_by:
            return f"the upload of {self.size} bytes took too long"
        if self._mark_at and now - self._mark_at >= self.window:
            moved, due = self._sent - self._mark_sent, self.rate * (now - self._mark_at)
            self._mark_at, self._mark_sent = now, self._sent
            if moved < due:
                return f"the upload stalled: {moved} bytes in {self.window:g} s"
        return None

    def _shut(self) -> None:
        if self._socket is None:
            return
        try:
            # Not the method of an SSL socket: that one drops the encryption first, and what the sending thread
            # writes in that instant would leave in plain text.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            return  # closed already


class Watchdog:
    """The thread that looks. It sleeps as long as nothing is under watch."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None
        self._arm()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._arm)

    def add(self, watch: Watch) -> None:
        """Begin to look at an exchange."""
        with self._changed:
            self._watches.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._guard, name="hubqueue-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, watch: Watch) -> None:
        """The exchange is over."""
        with self._changed:
            self._watches.discard(watch)

    def _arm(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._thread = None

    def _guard(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(_LOOK if self._watches else None)
                watches = list(self._watches)
            now = time.monotonic()
            for watch in watches:
                watch.look(now)


WATCHDOG = Watchdog()
