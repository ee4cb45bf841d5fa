"""A repository as a store of objects: what an attempt writes becomes one commit.

Promises that a commit has all of it or nothing: a checkpoint with its files, its manifest and what names it as the newest. A
repeat reads what is there before it writes, so it makes no second commit. Nothing that another commit has written meanwhile
is overwritten: each commit names its parent, and the Hub refuses it if there is a newer one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hubqueue.destinations.base import Attempt, Batch, Blocked, Kind, Scope, quiet
from hubqueue.destinations.huggingface.calls import Calls, Moved
from hubqueue.destinations.huggingface.errors import absent
from hubqueue.destinations.huggingface.objects import Objects, Uploads
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.domain.outcome import ADVICE
from hubqueue.domain.redact import clean

_REMEMBERED = "repository"
_WORDS = {
    Kind.REGISTRATION: "start",
    Kind.METRICS: "metrics",
    Kind.CKPT: "checkpoint",
    Kind.COMPLETION: "end",
}


class Repository:
    """A repository. Safe to use from several threads.

    With a `batch` it is the store of this batch alone: what is written becomes its commit, with the key of the batch in the
    message. `has_moved`: the commit was refused, because another one has come first. Then it can be made again with the
    same `uploads`.
    """

    def __init__(
        self,
        settings: HuggingfaceSettings,
        calls: Calls,
        batch: Batch | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self._settings, self._calls, self._batch, self._uploads = settings, calls, batch, uploads
        self.has_moved = False

    @contextmanager
    def sending(self, remembered: Mapping[str, str | int], attempt: Attempt) -> Iterator[Objects]:
        """Its objects, for one attempt. What is written is committed at the end, unless an error ends the attempt."""
        settings, batch = self._settings, self._batch
        assert batch is not None, "a commit belongs to a batch"
        known = remembered.get(_REMEMBERED, settings.repo_id)
        if known != settings.repo_id:
            how = f'set destinations.{settings.name}.repo_id = "{known}", or hubqueue cancel --run {batch.run.id}'
            what = f"this run began in the repository {known}, not in {settings.repo_id}{ADVICE}{how}"
            raise StoreFailed(Blocked(what, Scope.RUN))
        head = self._calls.head(attempt)
        if head is None and (remembered or batch.kind is not Kind.REGISTRATION):
            raise StoreFailed(absent(settings, self._calls.host))
        remember = {_REMEMBERED: settings.repo_id}
        objects = Objects(self._calls, head, attempt, uploads=self._uploads, remember=remember)
        yield objects
        name = clean(batch.run.remote_id or batch.run.shown_name, limit=80)
        try:
            objects.commit(
                f"hubqueue: {_WORDS[batch.kind]} of {name}", f"hubqueue-key: {batch.idempotency_key}"
            )
        except Moved:
            self.has_moved = True
            raise

    @contextmanager
    def reading(self) -> Iterator[Objects]:
        """Its objects, for a reader: all of the commit that is the newest now."""
        attempt = quiet()
        head = self._calls.head(attempt)
        if head is None:
            raise StoreFailed(absent(self._settings, self._calls.host))
        yield Objects(self._calls, head, attempt)

    def check(self) -> None:
        """Find out whether the token is accepted, and whether the repository exists or may be created."""
        settings, attempt = self._settings, quiet()
        found = self._calls.whoami(attempt)
        access = (found.get("auth") or {}).get("accessToken") or {}
        how = f"hubqueue login {settings.name} with a token that may write: {settings.url}/settings/tokens"
        if access.get("role") == "read":
            raise _held(f"the key may only read{ADVICE}{how}")
        if self._calls.head(attempt) is not None:
            return
        owners = [found["name"], *(each.get("name") for each in found.get("orgs") or ())]
        if settings.repo_id.partition("/")[0] not in owners:
            account = clean(found["name"], limit=80)
            what = f"{self._calls.host} has no repository {settings.repo_id} for the key of {account}"
            raise _held(f"{what}{ADVICE}correct destinations.{settings.name}.repo_id, or {how}")

    def close(self) -> None:
        self._calls.close()


def _held(reason: str) -> StoreFailed:
    return StoreFailed(Blocked(reason, Scope.DESTINATION))
