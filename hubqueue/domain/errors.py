"""Everything that hubqueue raises.

HubqueueError
├── ConfigError            a setting, all problems at once            (also ValueError)
├── UnknownName            no such run, entry or address              (also ValueError)
├── InvalidModel           a model identifier of no known form        (also ValueError)
├── InvalidMetrics         a metric that is not a number              (also ValueError)
├── InvalidArgument        any other invalid argument                 (also ValueError, TypeError)
├── CheckpointUnreadable   missing, a pipe, a folder, changing        (also OSError)
├── UnknownModel           the hub has no such model, or no data set  (also ValueError)
├── ModelUnavailable       the hub's data of a model cannot be read   (also ConnectionError)
├── DestinationUnavailable a destination cannot be read now           (also ConnectionError)
├── NotThere               a destination does not have what was asked (also LookupError)
├── NotWhole               a destination has a checkpoint, but not as it was saved
├── NotWritten             a pulled checkpoint cannot be written here (also OSError)
├── RunFinished            logging after `finish`
├── OutboxError
│   ├── OutboxUnavailable  read-only, disk full, cannot be read
│   │   └── OutboxLocked   another process keeps a lock for too long
│   ├── OutboxDamaged      the file is not a database any more
│   ├── OutboxAlien        the database belongs to another program
│   ├── OutboxTooNew       written by a newer hubqueue
│   ├── RunMissing         the outbox does not have the run any more
│   └── LeaseLost          a stale lease token at settle
├── SpoolError
│   ├── SpoolFull          the cap or the free-space reserve
│   ├── SpoolAway          the whole spool is not at its path now
│   ├── SnapshotMissing    the body is not in the spool
│   └── SnapshotAltered    the body is not what was enqueued
├── CredentialsError       credentials.toml cannot be read or written
└── WorkerError            a worker could not be started

Every error is one line that says what and which, plus `hint`, which says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TRY_AGAIN = "try again later; hubqueue check finds out why"
"""The hint of a `DestinationUnavailable` without a better one."""
_MOST_LISTED = 8


class HubqueueError(Exception):
    """Base class of all errors. `hint` is one line for the reader; the command line and a traceback show it on its own line."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")


class ConfigError(HubqueueError, ValueError):
    """Invalid settings. `problems` lists all of them, one line each."""

    def __init__(self, problems: tuple[str, ...], *, hint: str | None = None) -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems

    def __reduce__(self) -> tuple[Any, ...]:  # the default would unpickle the message as the problems
        return type(self), (self.problems,), self.__dict__


class UnknownName(HubqueueError, ValueError):
    """No run, entry or address in the outbox has this name or number."""


def ambiguous(given: str, ids: Sequence[str]) -> UnknownName:
    """The error of a beginning that several runs have."""
    return UnknownName(f"{len(ids)} runs begin with {given}: {listed(ids)}", hint="give more of the id")


def listed(ids: Sequence[str]) -> str:
    """The first ids of several."""
    return ", ".join(ids[:_MOST_LISTED]) + (", …" if len(ids) > _MOST_LISTED else "")


class InvalidModel(HubqueueError, ValueError):
    """The model identifier has no known form."""


class InvalidMetrics(HubqueueError, ValueError):
    """The metrics, or their epoch or step, cannot be sent as numbers."""


class InvalidArgument(HubqueueError, ValueError, TypeError):
    """An argument of a call is invalid."""


class CheckpointUnreadable(HubqueueError, OSError):
    """The checkpoint cannot be copied.

    It is missing, is constantly being written, or is or contains what cannot be sent (a pipe, a link that leads out of the
    folder), or it is a folder and the destination takes one file.
    """


class UnknownModel(HubqueueError, ValueError):
    """The hub has no such model, or has no data set for it yet."""


class ModelUnavailable(HubqueueError, ConnectionError):
    """The hub's data of a model that a training starts from could not be read."""


class DestinationUnavailable(HubqueueError, ConnectionError):
    """A destination cannot be read: no connection, a refused key, a disk that is away."""


class NotThere(HubqueueError, LookupError):
    """A destination does not have the run, the checkpoint or the file."""


class NotWhole(HubqueueError):
    """What a destination has of a checkpoint is not what was saved: other bytes, or a list of files that cannot be valid."""


class NotWritten(HubqueueError, OSError):
    """A pulled checkpoint cannot be written: the disk is full, or the folder is not writable."""


class RunFinished(HubqueueError):
    """The run is finished; it accepts no more entries."""


class OutboxError(HubqueueError):
    """The outbox could not do the operation.

    `unsure` is True when it may have been done: the confirmation of a commit was lost. Check before you repeat it.
    """

    unsure = False


class OutboxUnavailable(OutboxError):
    """Storage trouble: the database stayed locked, the folder is read-only, the disk is full."""


class OutboxLocked(OutboxUnavailable):
    """Another process, or another thread, keeps a lock of the outbox for too long."""


class OutboxDamaged(OutboxError):
    """The file exists but is not a readable database."""


class OutboxAlien(OutboxError):
    """The database belongs to another program."""


class OutboxTooNew(OutboxError):
    """The schema was written by a newer hubqueue."""


class RunMissing(OutboxError):
    """The outbox does not have the run: an older copy or another outbox has its place."""


class LeaseLost(OutboxError):
    """Another worker holds the lease of the lane now; that worker settles its entries."""


class SpoolError(HubqueueError):
    """A snapshot cannot be stored or found."""


class SpoolFull(SpoolError):
    """The spool's cap or the free-space reserve of the disk does not allow another snapshot."""


class SpoolAway(SpoolError):
    """The whole spool is not at its path now, for example because its disk is not mounted. Nothing is lost."""


class SnapshotMissing(SpoolError):
    """The snapshot of an entry is not in the spool."""


class SnapshotAltered(SpoolError):
    """The snapshot of an entry is not the file that was enqueued."""


class CredentialsError(HubqueueError):
    """The credentials cannot be read or written."""


class WorkerError(HubqueueError):
    """A worker could not be started."""
