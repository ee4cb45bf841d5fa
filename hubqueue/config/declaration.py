"""What a destination declares: one value, cheap to import, with all that hubqueue needs to know of a protocol.

A destination is a folder with such a value, or another package with one (see `registry.py`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Protocol, Self

from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.budget import PerClaim, check_costs
from hubqueue.domain.entry import Draft, Kind, Snapshot
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lane import Batch
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.outcome import Outcome
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile, StoredRun


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a transport reports on an attempt, and how the worker stops it.

    `on_start` is called when the connection is open and the first byte of a request is about to leave (only the first
    of several requests counts); what it raises ends the attempt. `on_bytes` receives the number of bytes of the body
    sent so far. When `stop` is set the transport gives up within about a second and returns `Aborted`. `on_progress`
    stores durably how far an upload of several steps came (None: nowhere); the next attempt reads it as
    `Entry.progress`. `patience` is how many whole requests of this lane had no response in time lately: the wait for one
    doubles for each.
    """

    on_start: Callable[[], None]
    on_bytes: Callable[[int], None]
    stop: threading.Event
    on_progress: Callable[[str | None], None] = lambda _progress: None
    patience: int = 0

    def beyond(self, done: int) -> Attempt:
        """The same attempt for a further request of an upload of which `done` bytes are sent already."""
        return replace(self, on_bytes=lambda sent: self.on_bytes(done + sent))

    def silent(self) -> Attempt:
        """The same attempt for a request whose bytes are no progress of the upload."""
        return replace(self, on_bytes=lambda _sent: None)


def quiet() -> Attempt:
    """An attempt without reports: for a request outside a batch."""
    return Attempt(on_start=lambda: None, on_bytes=lambda _sent: None, stop=threading.Event())


class Blocks(Protocol):
    """An opened file: its blocks, each valid until the next one is requested.

    What they raise ends the request. They raise no `OSError`: that would look like a network error.
    """

    def __iter__(self) -> Iterator[bytes | memoryview]: ...

    def close(self) -> object: ...


class SeekableBlocks(Blocks, Protocol):
    """An opened snapshot, which can also be read from an offset."""

    def section(self, start: int, size: int) -> Iterator[bytes | memoryview]:
        """`size` bytes from the offset `start`, in blocks of at most 1 MiB, instead of all of them.

        Only the whole file is compared with its hash, so compare what was read with a hash of the section.
        """
        ...


class Transport(Protocol):
    """The code that speaks a hub's protocol. Safe to use from several threads."""

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch of any kind, heartbeats included. A network error is an outcome, never an exception."""
        ...

    def check(self) -> Outcome:
        """Ask whether the key is accepted."""
        ...

    def close(self) -> None:
        """Close connections that are kept alive."""
        ...


class Key(str):
    """The first secret of a destination, with the further ones by name in `others`.

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

    `keys` returns the keys to try, in this order; call it for each attempt. Each key has all secrets that the destination
    declares, from one source: the first one is the key itself, the further ones are in its `others`. All are masked in
    what this process writes. `open_body` opens a snapshot (of a folder: its manifest; `files_of` lists its files): what it
    raises, and what its blocks raise, ends the request and is raised by `send`.
    """

    def __call__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[Key, ...]],
        open_body: Callable[[Snapshot], SeekableBlocks],
    ) -> Transport: ...


class Reader(Protocol):
    """Reads what a destination has. Nothing that it does changes anything there. Used by one thread.

    Each method raises `DestinationUnavailable` when the destination cannot be asked or refuses, with a hint, and
    `NotThere` for what it does not have.
    """

    def runs(self) -> Iterable[StoredRun]:
        """All runs, the newest last."""
        ...

    def checkpoints(self, run: str) -> tuple[StoredCheckpoint, ...]:
        """The checkpoints of the run with this name that are whole, in the order of their epochs and steps."""
        ...

    def blocks(self, checkpoint: StoredCheckpoint, file: StoredFile, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset, in blocks of at most 1 MiB."""
        ...

    def hashed(self, checkpoint: StoredCheckpoint, file: StoredFile) -> StoredFile | None:
        """What the destination itself states about a file now: its size, and its hash if it keeps one; None if it is gone."""
        ...

    def close(self) -> None:
        """Close connections and files."""
        ...


class Read(Protocol):
    """How a reader is made. It connects at its first use. `keys` is as in `Open`."""

    def __call__(self, settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> Reader: ...


class Registration(Protocol):
    """The draft for the start of a training; None if it owes nothing. `continues`: the run existed before."""

    def __call__(self, model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft | None: ...


class Completion(Protocol):
    """The draft for the end of a training: `results` of a finished one, `error` of another."""

    def __call__(
        self, state: RunState, *, results: Mapping[str, object] | None, error: str | None
    ) -> Draft: ...


Settings = type[DestinationSettings]
_NAME_OF_SECRET = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# The key in credentials.toml of the list of further keys for one address.
_FURTHER = "secrets"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that a destination needs. `name` is its key in `credentials.toml`: small letters, digits and underscores.

    Its own variable is `HUBQUEUE_KEY_<DESTINATION>` for the first secret, `HUBQUEUE_<NAME>_<DESTINATION>` for a further
    one. `variable` is the one that the vendor's own clients read; `borrowed` returns the secret that such a client keeps
    in its own settings, or an empty string. Both are only for the vendor's address, or one that a variable names. What is
    borrowed may be used `anywhere` if a request does not show it to the server. `needed` returns whether a destination with
    these settings needs it; the first secret is always needed.
    """

    name: str
    variable: str | None = None
    borrowed: Callable[[Mapping[str, str]], str] = lambda _environ: ""
    needed: Callable[[DestinationSettings], bool] = lambda _settings: True
    anywhere: bool = False

    def lent(self, environ: Mapping[str, str]) -> str:
        """The secret that such a client keeps; empty if it cannot be read."""
        try:
            return self.borrowed(environ).strip()
        except Exception:  # another package's code, and `status` and every worker run it
            return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A type of destination: its name, what it needs, what a run owes to it, and how that is sent and read back.

    What it needs: `settings` has the defaults of the type. The first of several `secrets` identifies the account, and a
    key needs all of them; without secrets, or with `key_optional`, no key is needed. `address_variables` names the variables
    that set an address if neither the file nor a HUBQUEUE_ variable does.

    What a run owes: `lanes` are the kinds of entries. `identify` reads the name of a model as a person writes it and
    raises `InvalidModel`; `recognizes` returns whether only this type knows such a form. `registration`, `completion` and
    `console` make the drafts of the start, of the end and of output lines (from their text, their count and a rising
    number; with `shows_progress` also from `progress=`, the text of each progress bar by its name). `describe` is called in
    the training's process when a run starts, with the settings and the arguments as they were given (not masked). What it
    returns completes each draft of a start or of metrics with facts about the machine.

    How it is sent: `open` makes the transport. With `takes_steps` the key of metrics may be a step; without, a step
    without an epoch is used as the epoch. With `takes_folders` a checkpoint may be a folder; without, a folder is refused
    when it is saved, unless it is saved as one tar. One metrics request carries at most `most_epochs` (None: the limit of
    the worker's settings). `costs` gives by kind how many "requests" of a budget one claim takes, and for a checkpoint also
    how many "uploads"; the default is 1.

    How it is read: `read` makes the reader for `pull` and `verify` (None: it cannot be read). `removes_older` returns
    whether it removes older checkpoints with these settings.

    For the integrations: `shows_newest`: the hub shows the checkpoint that arrives last. `resumes_from_last`: a training
    resumes from the checkpoint that arrives last, so an older one is not sent after a newer one. `wants_fitness`: metrics
    include the learning rate and the fitness. `record` is the file in which a vendor's own callback notes the id of a
    training's model.

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
    key_optional: bool = False
    address_variables: Mapping[str, str] = field(default_factory=dict)
    most_epochs: int | None = None
    costs: PerClaim = field(default_factory=dict)
    takes_folders: bool = False
    takes_steps: bool = False
    read: Read | None = None
    removes_older: Callable[[DestinationSettings], bool] = lambda _settings: False
    recognizes: Callable[[str | PathLike[str]], bool] = lambda _identifier: False
    console: Callable[..., Draft] | None = None
    shows_progress: bool = False
    describe: Callable[[DestinationSettings, Mapping[str, object]], Callable[[Draft], Draft]] | None = None
    shows_newest: bool = False
    resumes_from_last: bool = False
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

    @property
    def needs_key(self) -> bool:
        """Whether nothing is sent without a key."""
        return bool(self.secrets) and not self.key_optional
