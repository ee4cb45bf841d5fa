"""What one attempt produced. Outcomes are values; exceptions are for surprises."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Scope(StrEnum):
    """How far an outcome reaches beyond the batch that met it."""

    LANE = "lane"
    RUN = "run"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class Remote:
    """What an answer told about the run. None means that the answer did not speak of it.

    `run` is what the hub calls this start of the training, `file` where it keeps the checkpoint it just took.
    """

    id: str | None = None
    url: str | None = None
    agent_id: str | None = None
    run: str | None = None
    file: str | None = None
    cancelled: bool | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """A validated answer: the hub has the batch."""

    remote: Remote = Remote()


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not now. `after` is what the server asked for; `scope` DESTINATION makes every lane there wait for it.

    `suspect` marks an answer that reads like a crash over this very content (500): after several of them a batch
    is taken apart, so that one entry does not dam up the others.
    """

    reason: str
    after: timedelta | None = None
    scope: Scope = Scope.LANE
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The hub rejects the entry itself (400, 413, 422): the same bytes will never be taken."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Not a rejection of the entry: a person has to act. `scope` (RUN or DESTINATION) is held, everything is kept."""

    reason: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Aborted:
    """The worker itself stopped the attempt, because it ends: the attempt does not count."""

    reason: str


Outcome = Delivered | RetryLater | Rejected | Blocked | Aborted

# What a reason says of a host from which nothing came at all: `HOST: connection refused`.
_SILENCE = (
    "its name cannot be resolved",
    "connection refused",
    "no connection",
    "no answer in time",
    "connection reset",
    "closed without an answer",
)


def is_silence(reason: str) -> bool:
    """Whether a reason of `RetryLater` says that no response came, so that the destination counts as unreachable."""
    return reason.partition(": ")[2].startswith(_SILENCE)
