"""The watchdog: deadlines that hold against any peer.

A socket's own timeouts limit neither a peer that reads slowly nor one that drips its response. So one thread
checks every exchange a few times a second, and shuts the socket down when the exchange is too slow or has to
stop. The thread that is blocked in the exchange then wakes with an error.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hubqueue.domain import quantities

_INTERVAL = 0.2


@dataclass(eq=False, slots=True)
class Watch:
    """One exchange under watch. Times are in seconds, `rate` in bytes per second.

    Connecting takes at most `connect`, including proxy and encryption. Sending keeps at least `rate` on average over each
    `window`. The response is complete within `response` of the last request byte. `verdict` is the reason if the watch
    ended the exchange; `whole` whether the whole request has left.
    """

    stop: threading.Event
    connect: float
    window: float
    rate: float
    response: float
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
    _response_by: float = float("inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def opened(self, connection: socket.socket, *, ready: bool) -> None:
        """The connection is open. `ready` is False while the proxy or the encryption is still being set up."""
        # Our own descriptor: the connection's one moves to another object before the TLS handshake, and its number
        # could belong to another connection by the time it is shut down here.
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
        """`count` more bytes of the body have left."""
        self._sent += count
        self.on_bytes(self._sent)
        if self._sent >= self.size:
            self.awaiting_response()

    def awaiting_response(self) -> None:
        """The whole request has left; the time limit of the response begins."""
        self.whole = True
        self._mark_at, self._whole_by = 0.0, float("inf")
        self._response_by = time.monotonic() + self.response

    def check(self, now: float) -> None:
        """Shut the exchange down if a deadline has passed or the worker stops."""
        with self._lock:
            if self.verdict is None and not self._over:
                self.verdict = self._judge(now)
                if self.verdict is not None:
                    self._shut()

    def over(self) -> None:
        """The exchange has ended: its connection may serve another one now, so it is not touched any more."""
        with self._lock:
            self._over = True
            self._drop()

    def _judge(self, now: float) -> str | None:
        if self.stop.is_set():
            self.stopped = True
            return "the worker stops"
        if now > self._ready_by:
            return f"no connection within {self.connect:g} s"
        if now > self._response_by:
            return f"no complete response within {self.response:g} s"
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
            # The handle is a plain socket: an SSL socket would drop the encryption first, and bytes that the sending
            # thread writes at that moment would leave in plain text.
            self._handle.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already

    def _drop(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


class Watchdog:
    """The thread that checks the exchanges. It sleeps while there is none."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None
        self._arm()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._arm)

    def add(self, watch: Watch) -> None:
        """Start watching an exchange."""
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
                # A new exchange wakes the thread only from its sleep: otherwise the next check is due soon anyway.
                self._asleep = not self._watches
                self._changed.wait(None if self._asleep else _INTERVAL)
                watches = list(self._watches)
            now = time.monotonic()
            for watch in watches:
                watch.check(now)


WATCHDOG = Watchdog()
