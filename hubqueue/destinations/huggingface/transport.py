"""The transport of a repository: the layout of a folder and a bucket, with one commit for each batch.

Promises that a checkpoint is one commit, and that an attempt whose commit was refused, because another one has come first,
begins again with the files that it has uploaded already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hubqueue.config.declaration import Key
from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Delivered,
    Outcome,
    RetryLater,
    SeekableBlocks,
    Snapshot,
)
from hubqueue.destinations.huggingface.calls import Calls
from hubqueue.destinations.huggingface.objects import Uploads
from hubqueue.destinations.huggingface.repository import Repository
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.destinations.layout.transport import LayoutTransport

# How often one attempt makes its commit again, after commits of others.
_MOST_PASSES = 5


class HuggingfaceTransport:
    """Sends to one repository. Safe to use from several threads."""

    def __init__(
        self,
        settings: HuggingfaceSettings,
        keys: Callable[[], tuple[Key, ...]],
        open_body: Callable[[Snapshot], SeekableBlocks],
    ) -> None:
        self._settings, self._calls, self._open_body = settings, Calls(settings, keys), open_body

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: the start of a training, metrics, a checkpoint, or its end."""
        # Before the commit nothing is stored under a name, so no file may be left out of a repeat. The Hub itself knows
        # which files it has received, and receives them only once.
        batch = replace(batch, entries=tuple(each._replace(progress=None) for each in batch.entries))
        attempt = replace(attempt, on_progress=lambda _progress: None)
        uploads: Uploads = {}
        outcome: Outcome = RetryLater("")
        for _ in range(_MOST_PASSES):
            store = Repository(self._settings, self._calls, batch, uploads)
            outcome = LayoutTransport(store, self._open_body).send(batch, attempt)
            if not store.has_moved:
                break
        return outcome

    def check(self) -> Outcome:
        """Find out whether the token is accepted, and whether the repository exists or may be created."""
        try:
            Repository(self._settings, self._calls).check()
        except StoreFailed as failed:
            return failed.outcome
        return Delivered()

    def close(self) -> None:
        self._calls.close()
