"""The real transport with short deadlines, batches of each kind, and an attempt without a listener."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import BinaryIO

from hubqueue.destinations.base import Attempt
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.hub.transport import HubTransport
from hubqueue.domain.entry import Entry, Kind, Snapshot
from hubqueue.domain.lane import Batch, RunRef

KEY = "5ec4e7c0de15a1ff00d5ba5eba11deadbea7facade"
MODEL = "abcdefghij0123456789"
_NOW = 1_767_225_600_000_000


def transport(
    url: str, *, seconds: float = 1.0, open_body: Callable[[], BinaryIO] = io.BytesIO, **settings: object
) -> HubTransport:
    """A transport whose deadlines are all `seconds`, unless `settings` overrides them."""
    names = ("connect_timeout", "answer_timeout", "stall_window")
    quick: dict[str, object] = {name: timedelta(seconds=seconds) for name in names}
    chosen = HubSettings(name="hub", url=url, **{**quick, **settings})  # type: ignore[arg-type]
    return HubTransport(chosen, lambda: (KEY,), lambda _snapshot: open_body())


def batch(kind: str, *, size: int = 0) -> Batch:
    """A batch of one entry; a checkpoint has `size` bytes."""
    what = Kind(kind)
    snapshot = Snapshot("x.ckpt", size, 0) if what is Kind.CKPT else None
    payload = {
        Kind.CKPT: '{"epoch": 7, "is_best": true, "map": 0.5, "final": false}',
        Kind.REGISTRATION: '{"meta": {"name": "m.pt"}}',
    }.get(what, '{"loss": 1.0}')
    entry = Entry(1, "0", payload, 1, _NOW, snapshot, False, 1)
    entries = () if what is Kind.HEARTBEAT else (entry,)
    return Batch(RunRef("run", "hub", "m.pt", MODEL), what, entries, "key-of-the-batch")


def attempt(stop: threading.Event | None = None) -> Attempt:
    return Attempt(lambda: None, lambda _sent: None, stop or threading.Event())
