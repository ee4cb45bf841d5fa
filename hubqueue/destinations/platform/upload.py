"""A checkpoint, in three steps: ask for an upload target, put the bytes there, announce them.

Only the third step makes the checkpoint count. An attempt continues behind the second one where an earlier attempt came
so far: what is remembered is the name of the object, of no use to anybody without a key. The signed URL is a credential:
it is used within its attempt, never written down, and the next attempt asks for another one.
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
from hubqueue.destinations.platform.events import bound, number_of, taken
from hubqueue.destinations.platform.webhooks import Webhooks
from hubqueue.destinations.wire.api import Told
from hubqueue.destinations.wire.body import File
from hubqueue.destinations.wire.kept import is_kept_name
from hubqueue.destinations.wire.signed_url import Storage

# Responses to an announcement whose object is not there.
_NO_OBJECT = (404, 409, 410)


class Uploads:
    """Sends checkpoints. Safe to use from several threads."""

    def __init__(self, webhooks: Webhooks, storage: Storage, open_body: Callable[[Snapshot], Blocks]) -> None:
        self._webhooks, self._storage, self._open_body = webhooks, storage, open_body

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send one checkpoint, or what is left to do of it."""
        (entry,) = batch.entries
        snapshot, told = entry.snapshot, json.loads(entry.payload)
        assert snapshot is not None, "a checkpoint has a snapshot"
        kept = staged_in(entry.progress, batch.run)
        staged = kept or self._stage(batch, attempt, snapshot, best=told["final"] or told["is_best"])
        if not isinstance(staged, Staged):
            return staged
        if kept is None:
            attempt.on_progress(staged.progress(batch.run))
        remote = Remote(
            remember={"file": json.dumps({"modelPath": staged.object, "modelSize": snapshot.size})}
        )
        if number_of(batch.run) is None:
            return Delivered(remote)  # a hub that counts no starts: what is stored counts
        return self._announce(batch, attempt, staged, remote, judged=_NO_OBJECT if kept else ())

    def _stage(self, batch: Batch, attempt: Attempt, snapshot: Snapshot, *, best: bool) -> Staged | Outcome:
        """Ask for an upload target and put the bytes there."""
        asked = {"filename": "best.pt" if best else "last.pt", "modelId": batch.run.remote_id}
        number = number_of(batch.run)
        if number is not None:
            asked["runId"] = json.loads(number)
        told = self._webhooks.upload_target(asked, attempt)
        if not isinstance(told, Told):
            return told
        target = told.json or {}
        url, staged = target.get("uploadUrl"), Staged.of(target, self._webhooks.keys())
        if staged is None or not isinstance(url, str):
            return self._webhooks.lacks("valid place for the checkpoint")
        body = File(snapshot.size, lambda: self._open_body(snapshot))
        put = self._storage.put(url, body, attempt)
        return staged if put is None else put

    def _announce(
        self, batch: Batch, attempt: Attempt, staged: Staged, remote: Remote, *, judged: tuple[int, ...]
    ) -> Outcome:
        data = bound("checkpoint_saved", staged.data, batch.run)
        announced = self._webhooks.event(batch, attempt, "checkpoint_saved", data, judged=judged)
        if not isinstance(announced, Told):
            return announced
        if announced.answer.status in judged:
            # It was there and is gone, as storage is cleared of what nobody announced: the bytes go again.
            attempt.on_progress(None)
            status = announced.answer.status
            return RetryLater(f"{status}: the hub does not find the stored checkpoint; it is sent again")
        return taken(self._webhooks, announced, "this checkpoint", remote)


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes that the storage has, not announced yet."""

    object: str
    path: str | None

    @classmethod
    def of(cls, target: Mapping[str, Any], secrets: Iterable[str] = ()) -> Self | None:
        """Out of the response that gave the target; None when there is something in it that must not be kept."""
        found, path = target.get("gcsPath"), target.get("uploadPath")
        if not is_kept_name(found, secrets) or not (path is None or is_kept_name(path, secrets)):
            return None
        return cls(found, path)

    @property
    def data(self) -> dict[str, Any]:
        """The data of `checkpoint_saved`, but for the number of the start."""
        return {"modelPath": self.object, **({"uploadPath": self.path} if self.path is not None else {})}

    def progress(self, run: RunRef) -> str:
        """What to remember: the bytes are of use only to this start of this model."""
        return json.dumps(
            {"object": self.object, "path": self.path, "model": run.remote_id, "run": number_of(run)}
        )


def staged_in(progress: str | None, run: RunRef) -> Staged | None:
    """The bytes that an earlier attempt has stored for this start of the training, if it did."""
    found = json.loads(progress) if progress else {}
    if (found.get("model"), found.get("run")) != (run.remote_id, number_of(run)):
        return None
    return Staged.of({"gcsPath": found.get("object"), "uploadPath": found.get("path")})
