"""HUB and Platform on this machine: the real protocols over real sockets, for trying callbacks and for tests."""

from __future__ import annotations

from hubqueue.sandbox.faults import parse_rule
from hubqueue.sandbox.records import (
    BeatRecord,
    CheckpointRecord,
    EventRecord,
    RequestRecord,
    RunRecord,
    UploadRecord,
)
from hubqueue.sandbox.server import Sandbox

__all__ = [
    "BeatRecord",
    "CheckpointRecord",
    "EventRecord",
    "RequestRecord",
    "RunRecord",
    "Sandbox",
    "UploadRecord",
    "parse_rule",
]
