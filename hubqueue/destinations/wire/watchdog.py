"""The watchdog: deadlines that hold against any peer.

A socket's own timeouts limit neither a peer that reads slowly nor one that drips its response. So one thread
checks every exchange a few times a second, and shuts the socket down when no byte of the exchange moves, it is too slow or
has to stop. The thread that is blocked in the exchange then wakes with an error.

Promises that an upload may take as long as its bytes move: megabytes wait in the kernel's buffer of a slow line, so what
the peer has acknowledged counts, and not what the socket has taken.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hubqueue.domain import quantities
from hubqueue.domain.outcome import UNANSWERED

if sys.platform == "linux":
    import fcntl
    import termios

_INTERVAL = 0.2
# Without the kernel's report an upload shows progress only when a part of the socket's buffer is free again.
_BLIND = 4
# In bytes and seconds: what a peer, or a relay before it, may have acknowledged without having handled it. It handles
# that as fast as it took the last bytes, and responds then.
_BUFFERED, _LONGEST_BUFFERED = 8 * 1024 * 1024, 3600.0


@dataclass(eq=False, slots=True)
class Watch:
    """One exchange under watch. Times are in seconds, `rate` in bytes per second.

    Connecting takes at most `connect`, including proxy and encryption. While the request is sent, some byte moves in each
    `window`, and at least `rate` on average if that is more than 1. The response is complete within `response` of the
    last request byte that the peer has acknowledged, and the time that what is buffered there may take. `verdict` is the reason if the watch ended the exchange; `whole`
    whether the whole request has left.
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
    _marks: tuple[tuple[float, int], tuple[float, int]] = ((0.0, 0), (0.0, 0))
    _moved_at: float = float("inf")
    _seen: tuple[int, int | None] = (0, None)
    _buffered: float = 0.0
    _ready_by: float = float("inf")
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
        self._marks, self._moved_at = ((now, 0), (now, 0)), now

    def sent(self, count: int) -> None:
        """`count` more bytes of the body have left."""
        self._sent += count
        self.on_bytes(self._sent)
        if self._sent >= self.size:
            self.awaiting_response()

    def awaiting_response(self) -> None:
        """The whole request has left; the time limit of the response begins with its last byte."""
        self.whole = True
        self._moved_at = time.monotonic()

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
        if self._moved_at > now:
            return None  # it is not sending yet
        waiting = unacknowledged(self._handle) if self._handle is not None else None
        done = self._sent - (waiting or 0)
        if (self._sent, waiting) != self._seen:
            self._seen, self._moved_at = (self._sent, waiting), now
            before, moved = self._marks[0]
            if done > moved and now > before:
                self._buffered = min(self.size, _BUFFERED) * (now - before) / (done - moved)
        if self.whole:
            late = now - self._moved_at > self.response + min(self._buffered, _LONGEST_BUFFERED)
            return f"{UNANSWERED} {self.response:g} s" if late else None
        if now - self._moved_at >= self.window * (1 if waiting is not None else _BLIND):
            return f"the upload stalled: no byte in {self.window:g} s"
        since, had = self._marks[1]
        if now - since >= self.window:
            self._marks = (self._marks[1], (now, done))
            if self.rate > 1 and done - had < self.rate * (now - since):
                return f"the upload stalled: {quantities.size(max(done - had, 0))} in {self.window:g} s"
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


def unacknowledged(connection: socket.socket) -> int | None:
    """How many bytes of a connection its peer has not acknowledged yet; None where the system does not say."""
    if sys.platform != "linux":
        return None
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return None
    return int(count)


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
