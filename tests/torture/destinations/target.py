"""What the kills of a destination need: its servers, its settings, and what it has afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torture.destinations.tap import Seen
from torture.destinations.training import Sizes

from hubqueue.testing.conformance.service import Received

KIB = 1 << 10
MIB = 1 << 20
Batch = Sequence[tuple[str, Mapping[str, object]]]
"""Epochs and their values."""


@dataclass(slots=True)
class There:
    """What a destination has after the drain, read without hubqueue.

    `runs` are by the id of the run there, or by hubqueue's own. `batches` has their metrics as they were stored together,
    if there are several epochs in a batch. `newest` has by run and kind (last, best, final) the digest of
    the checkpoint that is named as the newest. `left` is what is half or forgotten, `twice` what was stored twice besides, `again` what was sent although the
    destination had it, `wrong` what must not be. `sent` is the number of parts or bodies that could be sent again.
    """

    runs: Mapping[str, Received] = field(default_factory=dict)
    batches: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    newest: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sent: int = 0


class Site:
    """The destination of one round. `url` is what the tap forwards to; empty without a network."""

    url = ""

    def environ(self, home: Path, url: str) -> dict[str, str]:
        """The environment of its processes. `url` is that of the tap."""
        raise NotImplementedError

    def look(self) -> list[str]:
        """What is wrong there now, between two kills. Opens nothing."""
        return []

    def rest(self) -> None:
        """End what prevents `there` from reading."""

    def clear(self, seen: Sequence[Seen]) -> None:
        """Delete what it has, where that is not in the folder of the round."""

    def there(self, seen: Sequence[Seen]) -> There:
        """What it has after the drain. Called once, in a process of its own. `seen` are all requests."""
        raise NotImplementedError


class Target:
    """A destination. Picklable; `sites` may start servers for all rounds.

    `defects` are the controls: each, in a worker, breaks what the judgement of this name must notice: `again` or `twice`.
    """

    type: ClassVar[str]
    name: ClassVar[str] = "lab"
    sizes: ClassVar[Sizes]
    requests: ClassVar[int] = 0
    """The highest number of a request at which a worker is killed; 0 without a network."""
    uploads: ClassVar[str] = ""
    """A pattern of the method and the target of requests with large bodies."""
    twins: ClassVar[int] = 0
    """How many empty runs each run may have beside it, after lost responses to its start."""
    points: ClassVar[Mapping[str, int]] = {}
    """Further failpoints, each with the highest number of its passage."""
    defects: ClassVar[Mapping[str, tuple[str, Callable[[], None]]]] = {}

    def missing(self) -> str | None:
        """What this machine lacks for it; None if nothing."""
        return None

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """The servers of all rounds."""
        yield

    def site(self, folder: Path) -> AbstractContextManager[Site]:
        """The destination of one round, with a folder of its own."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Called in each worker, before anything else."""

    def arm(self, point: str, number: int) -> None:
        """Kill this process at a passage of one of `points`."""
        raise NotImplementedError


def rates(name: str) -> dict[str, str]:
    """Settings of a destination without waits."""
    start = f"HUBQUEUE_DESTINATIONS__{name.upper()}__RATE_LIMITS__"
    waits = {"HUBQUEUE_RETRY__CAP": "0.05", "HUBQUEUE_RETRY__BASE": "0.05"}
    return {**waits, f"{start}METRICS": "0", f"{start}CKPT": "0"}
