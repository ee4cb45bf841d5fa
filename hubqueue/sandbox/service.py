"""What the sandbox needs of a service. Only the service knows its protocol: paths, keys, shapes.

A service responds to the requests for its own paths. It builds its state only from the facts of the archive. It describes
its runs with the same fields as every other service, so that one page shows them all.
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
    """One run, as a row of the list.

    `state` is the service's own word. `state_kind` classifies it: running, ended well, ended badly. `epochs` counts the
    epochs with metrics. `planned_epochs` is None if the run named no number. `bytes` is the total size of its checkpoints.
    `notes` are texts for a person, by label. `more` holds the service's own JSON fields.
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
        """Short and unique, such as the type of the destination that it simulates."""

    @property
    def title(self) -> str:
        """The name that the page shows."""

    @property
    def events(self) -> Mapping[str, str]:
        """The events that a rule may name with `event=`, and the kind of request that each one is."""

    @property
    def facts(self) -> frozenset[str]:
        """The names of the facts that it keeps. They are unique among the services."""

    @property
    def key_headers(self) -> tuple[str, ...]:
        """The headers, in lower case, in which a client may send an API key."""

    def attach(self, archive: Archive, accepts: Callable[[str], bool]) -> None:
        """Attach the service to one sandbox: its archive, and its check of an API key."""

    def reset(self) -> None:
        """Clear the state. Called before the archive reads its facts back."""

    def apply(self, fact: Fact) -> None:
        """Apply one fact. Raises KeyError, TypeError or ValueError for a fact that it did not write."""

    def route(self, method: str, path: str) -> Route:
        """The route of a request. `take` is None if the service does not serve this path."""

    def variables(self, url: str, key: str) -> Mapping[str, str]:
        """The environment variables that make a training send to `url`, with `key`."""

    def runs(self) -> Sequence[RunSummary]:
        """Every run, in the order in which they were created."""

    def run(self, run_id: str) -> RunDetail | None:
        """One run with all its details, or None."""

    def cancel(self, run_id: str) -> bool:
        """Cancel a run. False if there is no run with this id, or the protocol has no cancelling."""

    def document(self, path: str) -> Any | None:
        """The JSON document at one of its own paths below `/api/`, or None."""
