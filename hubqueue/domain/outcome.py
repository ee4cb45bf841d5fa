"""What one attempt produced. Outcomes are values; exceptions are for surprises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType

# The limit of what a destination can have remembered of one run, in characters of JSON.
MOST_REMEMBERED = 16_384


class Scope(StrEnum):
    """What an outcome applies to, beyond its batch."""

    LANE = "lane"
    RUN = "run"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class Remote:
    """What a response contained about the run. None means that the response did not mention it.

    `remember` is what the destination needs for its next requests, under names of its own: printable text or numbers. A
    name that it does not mention keeps its value. The next batch has all of them in `RunRef.remembered`.
    Raises `ValueError` for anything else, and for more than `MOST_REMEMBERED` characters.
    """

    id: str | None = None
    url: str | None = None
    remember: Mapping[str, str | int | None] = field(default_factory=dict, hash=False)
    cancelled: bool | None = None

    def __post_init__(self) -> None:
        for name, found in (("id", self.id), ("address", self.url)):
            if found is not None and not (isinstance(found, str) and found.isprintable()):
                raise ValueError(f"a run cannot have this {name}: only printable text")
        mentioned = {name: value for name, value in self.remember.items() if value is not None}
        for name, value in mentioned.items():
            if not name.isprintable() or not isinstance(value, str | int) or not str(value).isprintable():
                raise ValueError(f"a run cannot remember this {name!r}: only printable text or a number")
        if len(json.dumps(mentioned)) > MOST_REMEMBERED:
            raise ValueError(f"a run cannot remember more than {MOST_REMEMBERED} characters")
        object.__setattr__(self, "remember", MappingProxyType(mentioned))


@dataclass(frozen=True, slots=True)
class Delivered:
    """A validated response: the hub has the batch."""

    remote: Remote = Remote()


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not now. `after` is what the server asked for; `scope` DESTINATION makes every lane there wait for it.

    `suspect` marks a response that looks like a crash on this content (500): after several of them the batch is
    split, so that one entry does not block the others. `foreign` marks a refusal that is not the hub's own: it came from
    something before the hub, which has received nothing.
    """

    reason: str
    after: timedelta | None = None
    scope: Scope = Scope.LANE
    suspect: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The hub rejects the entry itself (400, 413, 422): the same bytes will never be accepted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Not a rejection of the entry, and a retry will not help: `scope` is held until a probe succeeds or a person acts.

    Every entry is kept.

    Raises `ValueError` for a scope that is neither RUN nor DESTINATION.
    """

    reason: str
    scope: Scope

    def __post_init__(self) -> None:
        # A plain text or another scope holds nothing: the next request would follow at once.
        if self.scope is not Scope.RUN and self.scope is not Scope.DESTINATION:
            raise ValueError(f"nothing but a run or a destination can be on hold, not {self.scope!r}")


@dataclass(frozen=True, slots=True)
class Aborted:
    """The worker stopped the attempt because it shuts down: the attempt does not count."""

    reason: str


Outcome = Delivered | RetryLater | Rejected | Blocked | Aborted

# In a reason before the advice of a destination that knows what a person must do.
ADVICE = "; to repair this: "
# In a reason after the name of a variable that other programs read.
UNREAD = "is set, but not read"
# In the reason of an attempt whose response is not the hub's own.
FOREIGN = "not like a hub"
# In the reason of an attempt whose whole request has left: its hub may only need longer.
UNANSWERED = "no complete response within"
# How the reason begins of a request whose time the destination does not accept.
CLOCK = "the clock of this machine"
# The reasons of attempts without any response, after the host: `HOST: connection refused`.
_SILENCE = (
    "its name cannot be resolved",
    "connection refused",
    "no connection",
    "no response in time",
    "connection reset",
    "closed without a response",
)


def is_silence(reason: str) -> bool:
    """Whether a reason of `RetryLater` means that no response came, so that the destination counts as unreachable."""
    return reason.partition(": ")[2].startswith(_SILENCE)
