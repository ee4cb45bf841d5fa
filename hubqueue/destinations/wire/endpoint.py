"""An endpoint: the address that requests go to, the proxy and certificates for it, and its deadlines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from hubqueue.config.settings import DestinationSettings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address and the deadlines of a `Wire`.

    `root` is an http or https address without a slash at its end; paths of requests are appended to it. Connecting takes
    at most `connect_timeout`; in each `stall_window` some byte of a body moves, and at least `stall_rate` bytes per second
    if that is more than 1; a response is complete within `answer_timeout` of the last byte of its request. `name` is its destination's, for messages. `proxy` may carry a password, so no repr
    shows it.
    """

    root: str
    connect_timeout: timedelta = timedelta(seconds=10)
    answer_timeout: timedelta = timedelta(seconds=60)
    stall_window: timedelta = timedelta(seconds=60)
    stall_rate: int = 1
    proxy: str | None = field(default=None, repr=False)
    ca_bundle: Path | None = None
    name: str = ""

    @classmethod
    def of(cls, settings: DestinationSettings) -> Self:
        """The endpoint of a destination: its own API."""
        return cls(
            root=settings.url.rstrip("/"),
            connect_timeout=settings.connect_timeout,
            answer_timeout=settings.answer_timeout,
            stall_window=settings.stall_window,
            stall_rate=settings.stall_rate,
            proxy=settings.proxy,
            ca_bundle=settings.ca_bundle,
            name=settings.name,
        )

    def at(self, root: str) -> Self:
        """An endpoint at another address, with the same proxy, certificates and deadlines."""
        return dataclasses.replace(self, root=root)

    @property
    def host(self) -> str:
        """The name of the host, for messages."""
        return urlsplit(self.root).hostname or self.root
