"""A checkpoint, in three steps: request an upload target, upload the bytes, announce them.

The checkpoint counts only after the third step. An attempt begins with the third step if an earlier one completed the
second: the name of the object is stored, which is useless without a key. The signed URL is a credential: it is used within
its attempt and never stored, and the next attempt asks for another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Blocks,
    Delivered,
    Outcome,
    Remote,
    RetryLater,
    RunRef,
    Snapshot,
)
from hubqueue.destinations.platform.events import bound, number_of, received
from hubqueue.destinations.platform.webhooks import Webhooks
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.body import File
from hubqueue.destinations.wire.kept import is_kept_name
from hubqueue.destinations.wire.signed_url import Storage

# Responses to an announcement whose object is missing.
_NO_OBJECT = (404, 409, 410)


class Uploads:
    """Sends checkpoints. Safe to use from several threads."""

    def __init__(self, webhooks: Webhooks, storage: Storage, open_body: Callable[[Snapshot], Blocks]) -> None:
        self._webhooks, self._storage, self._open_body = webhooks, storage, open_body

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send one checkpoint, or its remaining steps."""
        (entry,) = batch.entries
        snapshot, payload = entry.snapshot, json.loads(entry.payload)
        assert snapshot is not None, "a checkpoint has a snapshot"
        kept = staged_in(entry.progress, batch.run)
        staged = kept or self._stage(batch, attempt, snapshot, best=payload["final"] or payload["is_best"])
        if not isinstance(staged, Staged):
            return staged
        if kept is None:
            attempt.on_progress(staged.progress(batch.run))
        remote = Remote(
            remember={"file": json.dumps({"modelPath": staged.object, "modelSize": snapshot.size})}
        )
        if number_of(batch.run) is None:
            return Delivered(remote)  # a hub that does not count starts expects no announcement
        return self._announce(batch, attempt, staged, remote, judged=_NO_OBJECT if kept else ())

    def _stage(self, batch: Batch, attempt: Attempt, snapshot: Snapshot, *, best: bool) -> Staged | Outcome:
        """Request an upload target and upload the bytes."""
        name = ("best" if best else "last") + snapshot.extension
        request = {"filename": name, "modelId": batch.run.remote_id}
        number = number_of(batch.run)
        if number is not None:
            request["runId"] = json.loads(number)
        response = self._webhooks.upload_target(request, attempt)
        if not isinstance(response, ApiResponse):
            return response
        target = response.json or {}
        url, staged = target.get("uploadUrl"), Staged.of(target, self._webhooks.keys())
        if staged is None or not isinstance(url, str):
            return self._webhooks.missing("valid upload target")
        body = File(snapshot.size, lambda: self._open_body(snapshot))
        put = self._storage.put(url, body, attempt)
        return staged if put is None else put

    def _announce(
        self, batch: Batch, attempt: Attempt, staged: Staged, remote: Remote, *, judged: tuple[int, ...]
    ) -> Outcome:
        data = bound("checkpoint_saved", staged.data, batch.run)
        announced = self._webhooks.event(batch, attempt, "checkpoint_saved", data, judged=judged)
        if not isinstance(announced, ApiResponse):
            return announced
        if announced.status in judged:
            # The storage has removed the object, as it does without an announcement: the bytes must be sent again.
            attempt.on_progress(None)
            return RetryLater(
                f"{announced.status}: the hub does not find the stored checkpoint; it will be sent again"
            )
        return received(self._webhooks, announced, "this checkpoint", remote)


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes in the storage that are not announced yet."""

    object: str
    path: str | None

    @classmethod
    def of(cls, target: Mapping[str, Any], secrets: Iterable[str] = ()) -> Self | None:
        """The object of a response with an upload target; None if a name in it must not be kept."""
        found, path = target.get("gcsPath"), target.get("uploadPath")
        if not is_kept_name(found, secrets) or not (path is None or is_kept_name(path, secrets)):
            return None
        return cls(found, path)

    @property
    def data(self) -> dict[str, Any]:
        """The data of `checkpoint_saved`, without the number of the start."""
        return {"modelPath": self.object, **({"uploadPath": self.path} if self.path is not None else {})}

    def progress(self, run: RunRef) -> str:
        """What the next attempt needs. The bytes are valid only for this start of this model."""
        return json.dumps(
            {"object": self.object, "path": self.path, "model": run.remote_id, "run": number_of(run)}
        )


def staged_in(progress: str | None, run: RunRef) -> Staged | None:
    """The bytes that an earlier attempt has stored for this start of the training, if there are any."""
    found = json.loads(progress) if progress else {}
    if (found.get("model"), found.get("run")) != (run.remote_id, number_of(run)):
        return None
    return Staged.of({"gcsPath": found.get("object"), "uploadPath": found.get("path")})
