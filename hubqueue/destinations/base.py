"""What the author of a destination needs: the value to declare, and what a transport receives and returns.

For HTTP there is `hubqueue.destinations.wire`. docs/destinations.md shows a whole small destination.
"""

from __future__ import annotations

from hubqueue.config.declaration import (
    Attempt,
    Blocks,
    Completion,
    Destination,
    Key,
    Open,
    Read,
    Reader,
    Registration,
    Secret,
    SeekableBlocks,
    Transport,
    quiet,
)
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.arguments import hide_secrets
from hubqueue.domain.drafts import Position, position
from hubqueue.domain.entry import Draft, Entry, Kind, Snapshot
from hubqueue.domain.errors import DestinationUnavailable, InvalidModel, NotThere
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lane import Batch, RunRef
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.outcome import (
    Aborted,
    Blocked,
    Delivered,
    Outcome,
    Rejected,
    Remote,
    RetryLater,
    Scope,
)
from hubqueue.domain.snapshots.manifest import SnapshotFile, files_of, parts_of
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile, StoredRun

__all__ = [
    "Aborted",
    "Attempt",
    "Batch",
    "Blocked",
    "Blocks",
    "Completion",
    "Delivered",
    "Destination",
    "DestinationSettings",
    "DestinationUnavailable",
    "Draft",
    "Entry",
    "Identifier",
    "InvalidModel",
    "Key",
    "Kind",
    "NotThere",
    "Open",
    "Outcome",
    "Position",
    "Read",
    "Reader",
    "Registration",
    "Rejected",
    "Remote",
    "RetryLater",
    "RunRef",
    "RunState",
    "Scope",
    "Secret",
    "SeekableBlocks",
    "Snapshot",
    "SnapshotFile",
    "StoredCheckpoint",
    "StoredFile",
    "StoredRun",
    "Transport",
    "files_of",
    "hide_secrets",
    "parts_of",
    "position",
    "quiet",
]
