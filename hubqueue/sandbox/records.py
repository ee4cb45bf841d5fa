"""What the sandbox tells about what reached it. Nothing here is secret: a key is never recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class RequestRecord:
    """One request of a protocol, noted when its request line was read and completed when it ended.

    `path` is without the query. `kind` is registration, metrics, ckpt, heartbeat, event, completion, auth, read
    or other. `event` is what a Platform request calls itself, None elsewhere. `with_key` says that it carried
    an `Authorization` or `x-api-key` header, whatever was in it.
    `status` is the status of an answer that left completely, 0 when none did. `at_monotonic` is
    `time.monotonic()` when the request line was read: comparable within one boot of the machine.
    `replayed` says that an `Idempotency-Key` was known and nothing was stored again. `body_bytes` counts what
    arrived of the body. `epochs` are those of a complete metrics or checkpoint request. `fault` is the rule
    that fired. `ended` is false while the request is still being read or answered.
    """

    method: str
    path: str
    kind: str
    model_id: str | None
    at_monotonic: float
    at: datetime
    status: int = 0
    idempotency_key: str | None = None
    replayed: bool = False
    body_bytes: int = 0
    epochs: tuple[int, ...] = ()
    fault: str | None = None
    ended: bool = False
    event: str | None = None
    with_key: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """One stored upload. `type` is `epoch` or `final`; `map` is None for `epoch`; `size` is in bytes.

    `filename` is the name that the client gave, `name` the one under which the weights are served
    (`epoch-<N>.pt` or `best.pt`), `path` where the bytes are. `sha256` is hex, of the received bytes.
    """

    epoch: int
    type: str
    is_best: bool
    map: float | None
    filename: str
    name: str
    size: int
    sha256: str
    path: Path
    at: datetime


@dataclass(frozen=True, slots=True)
class BeatRecord:
    """One heartbeat: what the agent calls itself, the id it was answered, and when."""

    agent: str
    agent_id: str
    at: datetime
    at_monotonic: float


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One stored event of a training on Platform, in the order in which they were stored.

    `data` is as it was sent. `run_id` is the run it was counted for. `ignored` is `stale_instance` for an
    event of a run that a newer one has replaced: it changed nothing.
    """

    event: str
    data: dict[str, Any]
    run_id: int
    at: datetime
    ignored: str | None = None


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One checkpoint on its way to Platform: its URL handed out, its bytes staged, the staged object promoted.

    `run_id` is None for an upload that named no run: it counts as soon as its bytes are there. `object_path`
    is what the protocol calls `gcsPath`. `size` (bytes), `sha256` (hex) and `path` are None until the bytes
    have arrived; `with_key` says that they came with an `Authorization` header, which storage must not see.
    """

    filename: str
    run_id: int | None
    object_path: str
    upload_path: str
    expires_at: datetime
    token: str = field(repr=False)
    size: int | None = None
    sha256: str | None = None
    path: Path | None = None
    with_key: bool = False
    staged_at: datetime | None = None
    promoted_at: datetime | None = None


@dataclass(slots=True)
class RunRecord:
    """One training on Platform. `name` is the one it got, `asked_name` the one it asked for (`train-2`, `train`).

    `run_ids` are the ids of its starts, the current one last. `uploads` are all whose URL was handed out.
    """

    model_id: str
    project: str
    asked_name: str
    name: str
    created_at: datetime
    run_ids: list[int] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    uploads: list[UploadRecord] = field(default_factory=list)
    cancelled: bool = False

    @property
    def run_id(self) -> int:
        """The id of the current run; one that is older is stale."""
        return self.run_ids[-1]

    @property
    def state(self) -> str:
        """`training`, `complete`, `failed` or `cancelled` (which stays, whatever still arrives)."""
        if self.cancelled:
            return "cancelled"
        states = {
            "training_started": "training",
            "training_complete": "complete",
            "training_failed": "failed",
        }
        ends = (states[each.event] for each in reversed(self.counted) if each.event in states)
        return next(ends, "training")

    @property
    def counted(self) -> list[EventRecord]:
        """The events that were not ignored."""
        return [each for each in self.events if each.ignored is None]

    @property
    def epochs(self) -> dict[int, dict[str, Any]]:
        """The data of the last `epoch_end` of each epoch."""
        ends = [each for each in self.counted if each.event == "epoch_end"]
        return {each.data["epoch"]: each.data for each in sorted(ends, key=lambda each: each.data["epoch"])}

    @property
    def staged(self) -> list[UploadRecord]:
        """The objects that arrived and were not promoted."""
        return [each for each in self.uploads if each.staged_at is not None and each.promoted_at is None]

    @property
    def files(self) -> list[UploadRecord]:
        """The promoted checkpoints, in the order of their promotion."""
        promoted = [(each.promoted_at, each) for each in self.uploads if each.promoted_at is not None]
        return [each for _, each in sorted(promoted, key=lambda pair: pair[0])]

    @property
    def duplicates(self) -> list[EventRecord]:
        """The events that say word for word what an earlier event of the same run said."""
        seen: set[tuple[str, int, str]] = set()
        found = []
        for each in self.events:
            said = (each.event, each.run_id, json.dumps(each.data, sort_keys=True))
            if said in seen:
                found.append(each)
            seen.add(said)
        return found
