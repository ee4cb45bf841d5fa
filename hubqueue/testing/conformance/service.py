"""The fake service that a plugin's tests bring: what it can be made to do wrong, and what it has received."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hubqueue.domain.entry import Kind

WAIT = 120
"""Seconds of the wait that `Fault.SLOW_DOWN` asks for."""
BAD_EPOCH = 13
"""The epoch of the entries that `Fault.ENTRY_REFUSED` concerns."""
BAD_MARK = "conformance_refused"
"""The name of a metric in such metrics, and the beginning of the file in such a checkpoint."""


class Fault(StrEnum):
    """What a fake service can be made to do. The value completes the sentence "the service …"."""

    UNREACHABLE = "refuses the connection"
    SLOW_DOWN = "asks for a wait"
    """Responds 429, or what its protocol has for it, and asks for a wait of `WAIT` seconds."""
    ERROR = "fails"
    """Responds 500. The request is not carried out."""
    BROKEN_OFF = "breaks off its response"
    """The request is not carried out."""
    LOST = "breaks off its response after it has carried out the request"
    NONSENSE = "responds with something else"
    """As a login page does: complete, with the status of a success. The request is not carried out."""
    KEY_REFUSED = "refuses the key"
    ENTRY_REFUSED = "refuses an entry"
    """Refuses each request with an entry of the epoch `BAD_EPOCH`; such an entry also has `BAD_MARK` in it."""
    HANG = "does not respond"


DOWN = (Fault.UNREACHABLE, Fault.ERROR, Fault.KEY_REFUSED, Fault.BROKEN_OFF, Fault.NONSENSE)
"""What makes every request fail, whatever it is."""


@dataclass(frozen=True, slots=True)
class Received:
    """What the service has of one run, as one that reads there would see it.

    `metrics` are in the order of arrival: the key of the entry ("3" for an epoch, "step:120" for a step) and its values. What was
    stored twice is there twice. `checkpoints` are those that are whole: of each the bytes by path; of a checkpoint that is
    one file under any name. One that was replaced may be missing. `ends` are the states that it was given at the end:
    finished, failed or interrupted. `upload_bytes` is the number of bytes of checkpoints that arrived in all attempts
    together, repeated ones included; None if the service does not count them.
    """

    metrics: Sequence[tuple[str, Mapping[str, object]]] = ()
    checkpoints: Sequence[Mapping[str, bytes]] = ()
    ends: Sequence[str] = ()
    upload_bytes: int | None = None


class Service(Protocol):
    """A running fake service, new for each test.

    `type` is the type of the destination, `settings` what its table in the configuration needs besides (its address),
    `secrets` a value for each secret that it declares, `environ` further variables for its processes. `faults` are those
    that `fail` can inject; a test that needs another one is skipped with its name.
    """

    type: str
    faults: Collection[Fault] = frozenset(Fault)
    secrets: Mapping[str, str] = {}
    environ: Mapping[str, str] = {}

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """The settings of a destination that sends here."""
        ...

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        """Inject a fault, in addition to those before.

        It is for requests with entries of this kind (None: for all requests), not for the first `after` of them, and for
        `times` of those that follow (None: all). `UNREACHABLE` is for all requests.
        """
        ...

    def heal(self) -> None:
        """Remove all faults."""
        ...

    def received(self) -> Mapping[str, Received]:
        """What the service has, by the id of the run there: the id of `Remote`, else hubqueue's own."""
        ...
