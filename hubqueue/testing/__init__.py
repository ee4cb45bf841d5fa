"""Doubles for tests of code that uses hubqueue."""

# The sandbox is named here with its types; in hubqueue.sandbox its names are loaded when they are first used.
from hubqueue.destinations.sandbox import Sandbox
from hubqueue.testing.doubles import FakeClock, MemoryTransport, outbox_in

__all__ = ["FakeClock", "MemoryTransport", "Sandbox", "outbox_in"]
