"""A fake service on the sandbox's server, which injects all faults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

from hubqueue.domain.entry import Kind
from hubqueue.sandbox.server import Server
from hubqueue.testing.conformance.service import BAD_EPOCH, WAIT, Fault, Received

# As rules of `hubqueue.sandbox.faults`.
_RULES = {
    Fault.SLOW_DOWN: f"429:retry-after={WAIT}",
    Fault.ERROR: "500",
    Fault.BROKEN_OFF: "cut-body",
    Fault.LOST: "cut-body:store=yes",
    Fault.NONSENSE: "html",
    Fault.KEY_REFUSED: "401",
    Fault.ENTRY_REFUSED: f"422:epoch={BAD_EPOCH}",
    Fault.HANG: "silence",
}


class SandboxService:
    """A `Service` whose fake is a service of a sandbox. A subclass names the `type` and reads what was `received`."""

    type: str
    faults: Collection[Fault] = frozenset(Fault)
    secrets: Mapping[str, str] = {}
    environ: Mapping[str, str] = {}

    def __init__(self, server: Server) -> None:
        self.server = server

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """The settings of a destination that sends here."""
        return {"url": self.server.url}

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        """Inject a fault; see `Service.fail`."""
        if fault is Fault.UNREACHABLE:
            self.server.stop()
            return
        options = [f"after={after}"] if after else []
        options += [] if times is None else [f"times={times}"]
        self.server.fail(":".join([str(kind or "any"), _RULES[fault], *options]))

    def heal(self) -> None:
        """Remove all faults."""
        self.server.start()
        self.server.heal()

    def received(self) -> Mapping[str, Received]:
        """What the service has; see `Service.received`."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stop()
