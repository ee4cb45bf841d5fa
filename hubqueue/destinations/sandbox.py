"""The sandbox with the services of the destinations. `hubqueue sandbox`, the demo and tests start it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubqueue.destinations.hub.fake_models import BeatRecord, CheckpointRecord
from hubqueue.destinations.hub.sandbox import FakeHub
from hubqueue.destinations.platform.fake_runs import EventRecord, RunRecord, UploadRecord, copied
from hubqueue.destinations.platform.sandbox import FakePlatform
from hubqueue.destinations.services import services
from hubqueue.sandbox import faults as rules
from hubqueue.sandbox.faults import Rule
from hubqueue.sandbox.request import RequestRecord
from hubqueue.sandbox.server import Server

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


def parse_rule(text: str) -> Rule:
    """Read one rule, which may name the events of any service. Raises `ConfigError`, with a suggestion."""
    events = {event: kind for each in services() for event, kind in each.events.items()}
    return rules.parse_rule(text, events=events)


class Sandbox(Server):
    """HUB and Platform on one port of this machine; see docs/sandbox.md.

    `data` is the folder for everything it stores (None: a temporary folder, deleted with this object). `port` 0 takes
    a free port at the first start and keeps it. `keys` are the API keys it accepts (empty: any non-empty key). `faults`
    are rules of `hubqueue.sandbox.faults`; `seed` seeds their random generator. `latency` (seconds) delays each request
    before it is carried out. Platform's upload URLs are valid for `url_lifetime` seconds; the budgets are per key
    (None: unlimited). Raises `ConfigError` for an invalid rule.
    """

    def __init__(
        self,
        data: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keys: tuple[str, ...] = (),
        faults: Sequence[str] = (),
        latency: float = 0.0,
        honour_idempotency: bool = True,
        seed: int = 0,
        url_lifetime: float = 900.0,
        requests_per_minute: int | None = None,
        uploads_per_minute: int | None = None,
    ) -> None:
        self._hub = FakeHub()
        self._platform = FakePlatform(
            url_lifetime=url_lifetime,
            requests_per_minute=requests_per_minute,
            uploads_per_minute=uploads_per_minute,
        )
        super().__init__(
            services(ready=(self._hub, self._platform)),
            data,
            host,
            port,
            tuple(keys),
            faults,
            latency,
            honour_idempotency,
            seed,
        )

    # --- HUB

    @property
    def models(self) -> list[str]:
        """The ids of the models on HUB, oldest first."""
        with self._archive.changed:
            return list(self._hub.models)

    def model(self, model_id: str) -> dict[str, Any]:
        """The model object as a client reads it. Raises KeyError for an unknown id."""
        with self._archive.changed:
            return self._hub.models[model_id].document(self.url)

    def metrics(self, model_id: str) -> dict[int, dict[str, Any]]:
        """The stored metrics, parsed, by epoch. Raises KeyError for an unknown id."""
        with self._archive.changed:
            return self._hub.models[model_id].read_metrics()

    def metrics_texts(self, model_id: str) -> dict[str, str]:
        """The stored metrics exactly as they were sent, by epoch as sent."""
        with self._archive.changed:
            return dict(self._hub.models[model_id].metrics)

    def checkpoints(self, model_id: str) -> list[CheckpointRecord]:
        """Every stored upload, in the order they were stored."""
        with self._archive.changed:
            return list(self._hub.models[model_id].checkpoints)

    def beats(self, model_id: str) -> list[BeatRecord]:
        """Every heartbeat, in the order they were stored."""
        with self._archive.changed:
            return list(self._hub.models[model_id].beats)

    # --- Platform

    @property
    def runs(self) -> list[str]:
        """The model ids of the trainings on Platform, oldest first."""
        with self._archive.changed:
            return list(self._platform.tracked)

    def run(self, model_id: str) -> RunRecord:
        """A training on Platform, with everything it sent. A copy. Raises KeyError for an unknown id."""
        with self._archive.changed:
            return copied(self._platform.tracked[model_id])

    def cancel(self, model_id: str) -> None:
        """Cancel a training on Platform: every further response reports it. Raises KeyError for an unknown id."""
        if not self._platform.cancel(model_id):
            raise KeyError(model_id)
