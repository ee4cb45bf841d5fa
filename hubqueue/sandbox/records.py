"""What the sandbox tells about what reached it. Nothing here is secret: a key is never recorded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(slots=True)
class RequestRecord:
    """One request of the HUB protocol, noted when its request line was read and completed when it ended.

    `path` is without the query. `kind` is registration, metrics, ckpt, heartbeat, auth, read or other.
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
