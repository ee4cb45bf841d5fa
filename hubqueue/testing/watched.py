"""A real transport whose steps are noted, so that a test can act on each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from hubqueue.config.registry import declaration
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Batch, Kind, Outcome, Transport
from hubqueue.outbox.outbox import Outbox


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an attempt: of which kind, what (`claimed`, `request`, `bytes`, `progress`, `sent`), and its number among those.

    `claimed` is before the transport is called, `sent` after it has returned an outcome, `progress` after it was stored.
    `bytes` is what the attempt has sent so far.
    """

    kind: Kind
    what: str
    number: int
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.kind}, {self.what} {self.number}"


Note: TypeAlias = Callable[[Step], object]
"""Receives each step."""


class Watched:
    """Sends with another transport, and notes each step."""

    def __init__(self, inner: Transport, note: Note) -> None:
        self._inner, self._note = inner, note

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch."""
        seen: Counter[str] = Counter()

        def note(what: str, sent: int = 0) -> None:
            seen[what] += 1
            self._note(Step(batch.kind, what, seen[what], sent))

        def on_start() -> None:
            attempt.on_start()
            note("request")

        def on_bytes(sent: int) -> None:
            attempt.on_bytes(sent)
            note("bytes", sent)

        def on_progress(progress: str | None) -> None:
            attempt.on_progress(progress)
            note("progress")

        note("claimed")
        outcome = self._inner.send(
            batch, replace(attempt, on_start=on_start, on_bytes=on_bytes, on_progress=on_progress)
        )
        note("sent")
        return outcome

    def check(self) -> Outcome:
        """Ask whether the key is accepted."""
        return self._inner.check()

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._inner.close()


def opened(outbox: Outbox, settings: DestinationSettings) -> Transport:
    """The real transport of a destination, with the keys of this environment."""
    return declaration(settings.type).open(
        settings, lambda: outbox.credentials.keys(settings), outbox.spool.open
    )
