"""What every transport is to the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a transport tells about an attempt, and how it is told to stop.

    `on_start` is called when the connection stands and the first byte of a request is about to leave (only the first
    of several requests counts); what it raises ends the attempt. `on_bytes` hears how many bytes of the body have left so far. When `stop` is set
    the transport gives up within about a second and returns `Aborted`. `on_progress` writes down, durably, how far
    an upload of several steps came (None: nowhere); the next attempt finds it as `Entry.progress`.
    """

    on_start: Callable[[], None]
    on_bytes: Callable[[int], None]
    stop: threading.Event
    on_progress: Callable[[str | None], None] = lambda _progress: None


def quiet() -> Attempt:
    """An attempt that nobody watches: for asking something."""
    return Attempt(on_start=lambda: None, on_bytes=lambda _sent: None, stop=threading.Event())


class Transport(Protocol):
    """The code that speaks a hub's protocol. Safe to use from several threads."""

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch of any kind, heartbeats included. Network trouble is an outcome, never an exception."""
        ...

    def check(self) -> Outcome:
        """Ask whether the key is accepted."""
        ...

    def close(self) -> None:
        """Close connections that are kept alive."""
        ...
