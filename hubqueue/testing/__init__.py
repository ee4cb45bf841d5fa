"""Test doubles for code that uses hubqueue."""

from hubqueue.testing.doubles import FakeClock, MemoryTransport, outbox_in

__all__ = ["FakeClock", "MemoryTransport", "outbox_in"]
