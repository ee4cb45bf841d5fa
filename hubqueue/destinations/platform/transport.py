"""The protocol of Ultralytics Platform, as its own package speaks it (ultralytics 8.4.190, ultralytics-platform 0.1.99).

Each phase of a run has a file: `start`, `events`, `upload`. `end` makes the draft that `events` sends last.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Blocked,
    Blocks,
    Delivered,
    Kind,
    Outcome,
    Scope,
    Snapshot,
)
from hubqueue.destinations.platform.events import send_epoch, send_event, send_heartbeat
from hubqueue.destinations.platform.start import send_start
from hubqueue.destinations.platform.upload import Uploads
from hubqueue.destinations.platform.webhooks import Webhooks
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.signed_url import Storage

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class PlatformTransport:
    """Sends to one Platform. Safe to use from several threads."""

    def __init__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[str, ...]],
        open_body: Callable[[Snapshot], Blocks],
    ) -> None:
        self._with_load = getattr(settings, "environment", True)
        self._webhooks, self._storage = Webhooks(settings, keys), Storage(settings)
        self._uploads = Uploads(self._webhooks, self._storage, open_body)

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: the start of a training, an epoch, a checkpoint, an event, its end, or a heartbeat."""
        if batch.kind is Kind.REGISTRATION:
            return send_start(self._webhooks, batch, attempt)
        if not _ID.fullmatch(batch.run.remote_id or ""):
            return Blocked("invalid model id of the run", Scope.RUN)
        match batch.kind:
            case Kind.METRICS:
                return send_epoch(self._webhooks, batch, attempt)
            case Kind.CKPT:
                return self._uploads.send(batch, attempt)
            case Kind.EVENT | Kind.COMPLETION:
                return send_event(self._webhooks, batch, attempt)
            case Kind.HEARTBEAT:
                return send_heartbeat(self._webhooks, batch, attempt, with_load=self._with_load)

    def check(self) -> Outcome:
        """Ask whether the key is accepted."""
        response = self._webhooks.check()
        return Delivered() if isinstance(response, ApiResponse) else response

    def close(self) -> None:
        self._webhooks.close()
        self._storage.close()
