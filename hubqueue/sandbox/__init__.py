"""A hub on this machine: the real protocol over real sockets, for trying callbacks and for tests."""

from __future__ import annotations

from hubqueue.sandbox.faults import parse_rule
from hubqueue.sandbox.records import BeatRecord, CheckpointRecord, RequestRecord
from hubqueue.sandbox.server import Sandbox

__all__ = ["BeatRecord", "CheckpointRecord", "RequestRecord", "Sandbox", "parse_rule"]
