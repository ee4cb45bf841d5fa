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

from hubqueue.domain import quantities

_LOOK = 0.2


@dataclass(eq=False, slots=True)
class Watch:
    """One exchange under watch. Times are in seconds, `rate` in bytes per second.

    Connecting: within `connect`, with the proxy and the encryption. Sending: at least `rate` on average over each
    `window`. Answering: complete within `answer` of the last request byte. `verdict` says why the exchange was
    ended, if it was; `whole` whether all of the request has left.
    """

    stop: threading.Event
    connect: float
    window: float
    rate: float
    answer: float
    size: int
    on_bytes: Callable[[int], None]
    verdict: str | None = None
    stopped: bool = False
    whole: bool = False
    _handle: socket.socket | None = None
    _over: bool = False
    _sent: int = 0
    _mark_at: float = 0.0
    _mark_sent: int = 0
    _ready_by: float = float("inf")
    _whole_by: float = float("inf")
    _answer_by: float = float("inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def opened(self, connection: socket.socket, *, ready: bool) -> None:
        """The connection stands (`ready`), or is still to agree with a proxy, or on its encryption."""
        # A descriptor of our own: the connection's passes to another object before the encryption is agreed on,
        # and what is shut down here must be this connection and not whoever has its number by then.
        handle = socket.fromfd(connection.fileno(), connection.family, connection.type)
        with self._lock:
            self._drop()
            self._handle = handle
            self._ready_by = float("inf") if ready else time.monotonic() + self.connect
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
        self.whole = True
        self._mark_at, self._whole_by = 0.0, float("inf")
        self._answer_by = time.monotonic() + self.answer

    def look(self, now: float) -> None:
        """End the exchange if it has to end."""
        with self._lock:
            if self.verdict is None and not self._over:
                self.verdict = self._judge(now)
                if self.verdict is not None:
                    self._shut()

    def over(self) -> None:
        """The exchange has ended: its connection may be another's by now and is left alone."""
        with self._lock:
            self._over = True
            self._drop()

    def _judge(self, now: float) -> str | None:
        if self.stop.is_set():
            self.stopped = True
            return "the worker stops"
        if now > self._ready_by:
            return f"no connection within {self.connect:g} s"
        if now > self._answer_by:
            return f"no complete answer within {self.answer:g} s"
        if now > self._whole_by:
            return f"the upload of {quantities.size(self.size)} took too long"
        if self._mark_at and now - self._mark_at >= self.window:
            moved, due = self._sent - self._mark_sent, self.rate * (now - self._mark_at)
            self._mark_at, self._mark_sent = now, self._sent
            if moved < due:
                return f"the upload stalled: {quantities.size(moved)} in {self.window:g} s"
        return None

    def _shut(self) -> None:
        if self._handle is None:
            return
        try:
            # The handle is a plain socket: an SSL socket would drop the encryption first, and what the sending
            # thread writes in that instant would leave in plain text.
            self._handle.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already

    def _drop(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


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
            if self._asleep:
                self._changed.notify()

    def remove(self, watch: Watch) -> None:
        """The exchange is over."""
        with self._changed:
            self._watches.discard(watch)
        watch.over()

    def _arm(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._asleep = False
        self._thread = None

    def _guard(self) -> None:
        while True:
            with self._changed:
                # Exchanges that follow one another do not wake it each time: it is up, and looks when it is time.
                self._asleep = not self._watches
                self._changed.wait(None if self._asleep else _LOOK)
                watches = list(self._watches)
            now = time.monotonic()
            for watch in watches:
                watch.look(now)


WATCHDOG = Watchdog()
