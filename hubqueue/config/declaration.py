"""What a destination declares: one value, cheap to import, that tells hubqueue all it has to know of a protocol.

A destination is a folder with such a value, or a stranger's package with one (see `registry.py`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Protocol, Self

from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.budget import PerClaim, check_costs
from hubqueue.domain.entry import Draft, Kind, Snapshot
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lane import Batch
from hubqueue.domain.lifecycle import RunState
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


class Blocks(Protocol):
    """An opened file: its blocks, each good until the next one is asked for.

    What they raise ends the request. That is no `OSError`, which would pass for trouble of the network.
    """

    def __iter__(self) -> Iterator[bytes | memoryview]: ...

    def close(self) -> object: ...


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


class Key(str):
    """The first secret of a destination, and by name in `others` the further ones that belong to it.

    It equals its text, so a destination with one secret uses it as a string.
    """

    __slots__ = ("others",)
    others: Mapping[str, str]

    def __new__(cls, first: str, others: Mapping[str, str] | None = None) -> Self:
        made = super().__new__(cls, first)
        made.others = dict(others or {})
        return made

    @property
    def parts(self) -> tuple[str, ...]:
        """All of its secrets, the first one first."""
        return (str(self), *self.others.values())


class Open(Protocol):
    """How a transport is made. It connects when it sends, not now.

    `keys` gives the keys to try, in this order, asked anew for each attempt. None of them lacks a secret that the
    destination declares: the first one is the key itself, the further ones are in its `others`, from the same source; all
    are masked in what this process writes. `open_body` opens a snapshot: what it raises, and what its blocks raise, ends
    the request and is raised by `send`.
    """

    def __call__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[Key, ...]],
        open_body: Callable[[Snapshot], Blocks],
    ) -> Transport: ...


class Registration(Protocol):
    """The draft that a start of a training owes; None where nothing is owed. `continues`: the run was there before."""

    def __call__(self, model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft | None: ...


class Completion(Protocol):
    """The draft that the end of a training owes: `results` of a finished one, or why another one failed."""

    def __call__(
        self, state: RunState, *, results: Mapping[str, object] | None, error: str | None
    ) -> Draft: ...


Settings = type[DestinationSettings]
_NAME_OF_SECRET = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# In credentials.toml the list of further keys for one address stands under this name.
_FURTHER = "secrets"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that a destination needs. `name` is its key in `credentials.toml`: small letters, digits and underscores.

    Its own variable is `HUBQUEUE_KEY_<DESTINATION>` for the first secret, `HUBQUEUE_<NAME>_<DESTINATION>` for another one.
    `variable` is the one that the vendor's own clients read; `borrowed` gives the secret that such a client keeps in its
    own settings, or an empty string. Both are only for the vendor's address, or one that a variable names.
    """

    name: str
    variable: str | None = None
    borrowed: Callable[[Mapping[str, str]], str] = lambda _environ: ""

    def lent(self, environ: Mapping[str, str]) -> str:
        """What such a client keeps; nothing where that cannot be read."""
        try:
            return self.borrowed(environ).strip()
        except Exception:  # a stranger's code; `status` and every worker come by here
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A type of destination: what it is called, what it needs, what a run owes to it, and how that is sent.

    `settings` has the defaults of the type. Of several `secrets` the first one says which account it is, and no key lacks
    one of the others; without any, no key is needed. `address_variables` names the variables that replace an address where neither the file nor a
    HUBQUEUE_ variable sets it. `lanes` are the kinds of entries that a run owes. One metrics request carries at most
    `most_epochs` (None: as many as the worker's settings say). `costs` says by kind how many "requests" of a budget one
    claim takes, and of a checkpoint also how many "uploads"; 1 where it says nothing. `identify` reads what a person
    writes to name a model and raises `InvalidModel`; `recognizes` says whether only this type knows such a form.
    `console` makes the draft of lines of output: their text, how many they are, and a rising number.

    `shows_newest`: the checkpoint that arrives last is shown as the model's. `wants_fitness`: metrics come with the learning rate
    and the fitness. `record` is the file in which a vendor's own callback notes the id of a training's model.
    `service` is the dotted name (`package.module:name`) of the fake service for the sandbox.
    """

    type: str
    settings: Settings
    lanes: tuple[Kind, ...]
    identify: Callable[[str | PathLike[str], DestinationSettings], Identifier]
    open: Open
    registration: Registration
    completion: Completion | None = None
    secrets: tuple[Secret, ...] = (Secret("key"),)
    address_variables: Mapping[str, str] = field(default_factory=dict)
    most_epochs: int | None = None
    costs: PerClaim = field(default_factory=dict)
    takes_folders: bool = False
    recognizes: Callable[[str | PathLike[str]], bool] = lambda _identifier: False
    console: Callable[[str, int, int], Draft] | None = None
    shows_newest: bool = False
    wants_fitness: bool = True
    record: str | None = None
    service: str | None = None

    def __post_init__(self) -> None:
        names = [each.name for each in self.secrets]
        wrong = [each for each in names if not _NAME_OF_SECRET.fullmatch(each) or each == _FURTHER]
        # HUBQUEUE_KEY_ID_LAB would be the key of a destination that is called id-lab.
        wrong += [each for each in names[1:] if each == "key" or each.startswith("key_")]
        if wrong or len(set(names)) < len(names):
            raise ValueError(f"the secrets of {self.type!r} cannot be named {', '.join(map(repr, names))}")
        check_costs(self.costs)
