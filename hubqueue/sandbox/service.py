"""What the sandbox needs of a service, which alone knows a protocol: its paths, its keys, its shapes.

A service responds to the requests for its own paths, has its state from nothing but the facts of the archive, and shows
its runs in the same few words as every other service, so that one page shows them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from hubqueue.sandbox.archive import Archive, Fact
from hubqueue.sandbox.routes import Route


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, as a line of the list shows it.

    `state` is the service's own word, `state_kind` what it means to a person: it is running, it has ended well or badly.
    `epochs` counts those with metrics, `planned_epochs` is None where the run named no number. `bytes` is the size of
    its checkpoints together. `notes` are for a person to read, by label; `more` is JSON of this service, under names of
    its own.
    """

    id: str
    name: str
    state: str
    created_at: datetime
    changed_at: datetime
    epochs: int
    planned_epochs: int | None
    checkpoints: int
    bytes: int
    state_kind: Literal["busy", "good", "bad", ""] = ""
    can_cancel: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One stored checkpoint. `href` is the path to fetch it from, None where it cannot be fetched."""

    name: str
    bytes: int
    sha256: str
    path: str
    at: datetime
    epoch: int | None = None
    is_best: bool = False
    is_final: bool = False
    note: str = ""
    href: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunDetail:
    """One run with all that its page shows. `metrics` are by epoch, values as they were received."""

    summary: RunSummary
    metrics: Mapping[int, Mapping[str, Any]]
    files: Sequence[StoredFile]
    more: Mapping[str, Any] = field(default_factory=dict)


class Service(Protocol):
    """One service of the sandbox. What reads its state is called under `Archive.changed`."""

    @property
    def name(self) -> str:
        """Short and unique, such as the type of the destination that it stands for."""

    @property
    def title(self) -> str:
        """What a person calls it."""

    @property
    def events(self) -> Mapping[str, str]:
        """The events that a rule may name with `event=`, and the kind of request that each one is."""

    @property
    def facts(self) -> frozenset[str]:
        """The names of the facts that it keeps; no other service has one of them."""

    @property
    def key_headers(self) -> tuple[str, ...]:
        """The headers, in lower case, in which a client may send an API key."""

    def attach(self, archive: Archive, accepts: Callable[[str], bool]) -> None:
        """Belong to one sandbox from now on: its archive, and the check of an API key."""

    def reset(self) -> None:
        """Forget everything: the archive is about to read its facts back."""

    def apply(self, fact: Fact) -> None:
        """Take one fact in. Raises KeyError, TypeError or ValueError for one that it did not write."""

    def route(self, method: str, path: str) -> Route:
        """The route of a request; one without `take` where it does not serve this path."""

    def variables(self, url: str, key: str) -> Mapping[str, str]:
        """The environment variables that make a training send to `url`, with `key`."""

    def runs(self) -> Sequence[RunSummary]:
        """Every run, in the order in which they were created."""

    def run(self, run_id: str) -> RunDetail | None:
        """One run with everything, or None."""

    def cancel(self, run_id: str) -> bool:
        """Cancel a run. False when there is none of this id, or the protocol has no such thing."""

    def document(self, path: str) -> Any | None:
        """What it shows as JSON at a path of its own below `/api/`, or None."""
