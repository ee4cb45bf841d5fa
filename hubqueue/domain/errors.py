"""Everything that hubqueue raises.

HubqueueError
├── ConfigError            a setting, all problems at once            (also ValueError)
├── UnknownName            a run, an entry or an address nobody has   (also ValueError)
├── InvalidModel           an identifier nobody can read              (also ValueError)
├── InvalidMetrics         a metric that is not a number              (also ValueError)
├── InvalidArgument        anything else that cannot be used          (also ValueError, TypeError)
├── CheckpointUnreadable   missing, a directory, a link, still moving (also OSError)
├── UnknownModel           the hub has no such model, or no data set  (also ValueError)
├── ModelUnavailable       the hub did not tell about a model         (also ConnectionError)
├── RunFinished            logging after `finish`
├── OutboxError
│   ├── OutboxUnavailable  locked for too long, read-only, disk full
│   ├── OutboxDamaged      the file is not a database any more
│   ├── OutboxAlien        the database belongs to another program
│   ├── OutboxTooNew       written by a newer hubqueue
│   └── LeaseLost          a stale lease token at settle
├── SpoolError
│   ├── SpoolFull          the cap or the free-space reserve
│   ├── SnapshotMissing    the body is not in the spool
│   └── SnapshotAltered    the body is not what was enqueued
├── CredentialsError       credentials.toml cannot be read or written
└── WorkerError            a worker could not be started

Every error is one line that says what and which, plus `hint`, which says what to do next.
"""

from __future__ import annotations


class HubqueueError(Exception):
    """Base of all. `hint` is one line for the person who reads it, shown apart by the command line."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(HubqueueError, ValueError):
    """Settings that cannot be used. `problems` lists every one of them, each a line."""

    def __init__(self, problems: tuple[str, ...], *, hint: str | None = None) -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems


class UnknownName(HubqueueError, ValueError):
    """A name or a number that nothing in the outbox has."""


class InvalidModel(HubqueueError, ValueError):
    """The model identifier has no known form."""


class InvalidMetrics(HubqueueError, ValueError):
    """The metrics or their epoch cannot be sent as numbers."""


class InvalidArgument(HubqueueError, ValueError, TypeError):
    """An argument of a call cannot be used."""


class CheckpointUnreadable(HubqueueError, OSError):
    """The checkpoint cannot be copied: missing, not a plain file, or written to without a pause."""


class UnknownModel(HubqueueError, ValueError):
    """The hub has no such model, or has no data set for it yet."""


class ModelUnavailable(HubqueueError, ConnectionError):
    """The hub could not be asked about a model that a training is to begin with."""


class RunFinished(HubqueueError):
    """The run was finished; it takes no more entries."""


class OutboxError(HubqueueError):
    """The outbox cannot do what was asked.

    `unsure` when it may have been done all the same: the confirmation of a commit got lost. Look before doing it again.
    """

    unsure = False


class OutboxUnavailable(OutboxError):
    """Storage trouble: the database stayed locked, the folder is read-only, the disk is full."""


class OutboxDamaged(OutboxError):
    """The file is there and is not a readable database."""


class OutboxAlien(OutboxError):
    """A database, but not hubqueue's."""


class OutboxTooNew(OutboxError):
    """The schema comes from a newer hubqueue than this one."""


class LeaseLost(OutboxError):
    """Somebody else holds the lane by now; the new holder decides."""


class SpoolError(HubqueueError):
    """A snapshot cannot be kept or found."""


class SpoolFull(SpoolError):
    """The spool's cap or the free-space reserve of the disk does not allow another snapshot."""


class SnapshotMissing(SpoolError):
    """The snapshot of an entry is not in the spool."""


class SnapshotAltered(SpoolError):
    """The snapshot of an entry is not the file that was enqueued."""


class CredentialsError(HubqueueError):
    """The credentials cannot be read or written."""


class WorkerError(HubqueueError):
    """A worker could not be started."""
