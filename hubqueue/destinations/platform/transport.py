"""The protocol of Ultralytics Platform, as its own package speaks it (ultralytics 8.4.190, ultralytics-platform 0.1.99).

A delivery is proved: 2xx, complete, JSON, and `received` true in it. A checkpoint takes three steps (a signed URL,
the bytes, `checkpoint_saved`); only the third makes it count, and an attempt goes on behind the second one where
an earlier attempt came so far. The signed URL is a secret that lives within one attempt and is never written down.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.base import Attempt, Blocks, quiet
from hubqueue.destinations.platform import events, machine
from hubqueue.destinations.wire.api import Api, Told
from hubqueue.destinations.wire.body import Bytes, File
from hubqueue.destinations.wire.kept import is_kept_address, is_kept_id
from hubqueue.destinations.wire.signed_url import Storage
from hubqueue.domain.entry import Kind, Snapshot
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Blocked, Delivered, Outcome, Rejected, Remote, RetryLater, Scope
from hubqueue.domain.redact import clean

_EVENTS = "/api/webhooks/training/metrics"
_UPLOADS = "/api/webhooks/models/upload"
# Answers to an announcement whose object is not there.
_NO_OBJECT = (404, 409, 410)
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_JSON = {"Content-Type": "application/json"}

Address = Mapping[str, str]
"""Which training a request is about: `modelId`, or `project` and `name`."""


class PlatformTransport:
    """Sends to one Platform. Safe to use from several threads."""

    def __init__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[str, ...]],
        open_body: Callable[[Snapshot], Blocks],
    ) -> None:
        self._open_body = open_body
        self._api = Api(settings, keys, lambda key: {"Authorization": f"Bearer {key}"})
        self._storage = Storage(settings)

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: the start of a training, an epoch, a checkpoint, an event, its end, or a sign of life."""
        if batch.kind is Kind.REGISTRATION:
            return self._start(batch, attempt)
        if not _ID.fullmatch(batch.run.remote_id or ""):
            return Blocked("invalid model id of the run", Scope.RUN)
        match batch.kind:
            case Kind.METRICS:
                (entry,) = batch.entries
                return self._deliver(
                    batch, attempt, "epoch_end", events.epoch_end(int(entry.key), entry.payload)
                )
            case Kind.CKPT:
                return self._upload(batch, attempt)
            case Kind.EVENT | Kind.COMPLETION:
                told = json.loads(batch.entries[0].payload)
                name = told["event"]
                return self._deliver(batch, attempt, name, events.bound(name, told["data"], batch.run))
            case Kind.HEARTBEAT:
                return self._beat(batch, attempt)

    def check(self) -> Outcome:
        """Ask whether the key is accepted: a place for a model that cannot exist is refused as unknown, with 404."""
        told = self._ask(_UPLOADS, {"filename": "check.pt", "modelId": "0" * 24}, quiet(), judged=(400, 404))
        return Delivered() if isinstance(told, Told) else told

    def close(self) -> None:
        self._api.close()
        self._storage.close()

    # The start of a training.

    def _start(self, batch: Batch, attempt: Attempt) -> Outcome:
        (entry,) = batch.entries
        told = json.loads(entry.payload)
        plain = {"project": told["project"], "name": told["name"]}
        tries = events.tries_in(entry.progress)
        known = batch.run.remote_id
        address: Address | Outcome = {"modelId": known} if known else plain
        if not known and tries:
            address = self._address_again(plain, tries, batch, attempt)
        if not isinstance(address, Mapping):
            return address
        found = self._started(batch, attempt, address, told["data"], tries)
        if known and isinstance(found, Told) and events.is_over(found.answer.status, found.json):
            # The model was deleted, or its training is over for good: this one becomes a new model.
            found = self._started(batch, attempt, plain, told["data"], 0)
        return self._bound(found.json or {}) if isinstance(found, Told) else found

    def _started(
        self, batch: Batch, attempt: Attempt, address: Address, data: Mapping[str, Any], tries: int
    ) -> Told | Outcome:
        """Send `training_started`, with a note before it that it may be taken, and none when it was not."""

        def on_start() -> None:
            attempt.on_start()
            attempt.on_progress(events.progress_of_tries(tries + 1))

        sending = dataclasses.replace(attempt, on_start=on_start)
        gone = (404, 410) if "modelId" in address else ()
        found = self._event(batch, sending, "training_started", data, address, judged=gone)
        if isinstance(found, Blocked | Rejected) or (
            isinstance(found, RetryLater) and found.scope is Scope.DESTINATION
        ):
            attempt.on_progress(events.progress_of_tries(tries))
        return found

    def _address_again(self, plain: Address, tries: int, batch: Batch, attempt: Attempt) -> Address | Outcome:
        """How to ask again after tries that may have been taken without our hearing of it (decision 0013)."""
        taken = self._find(plain, attempt)
        if taken is None or (isinstance(taken, str) and tries == 1):
            return plain
        if not isinstance(taken, str):
            return taken
        own = events.own_name(plain, batch.run.id)
        mine = self._find(own, attempt)
        if mine is None:
            return own
        return {"modelId": mine} if isinstance(mine, str) else mine

    def _find(self, address: Address, attempt: Attempt) -> str | Outcome | None:
        """The id of the model with a name; None when there is none. Asking for a place to upload changes nothing."""
        told = self._ask(_UPLOADS, {"filename": "best.pt", **address}, _silent(attempt), judged=(404,))
        if not isinstance(told, Told):
            return told
        if told.answer.status == 404:
            return None
        found = (told.json or {}).get("modelId")
        return found if self._is_id(found) else self._api.lacks("valid model id")

    def _bound(self, found: Mapping[str, Any]) -> Outcome:
        model_id, url, run = found.get("modelId"), found.get("modelUrl"), found.get("runId")
        if not self._is_id(model_id):
            return self._api.lacks("valid model id")
        shown = url if is_kept_address(url, self._api.keys()) else None
        number = json.dumps(run) if self._is_id(run) or type(run) is int else None
        cancelled = found.get("cancelled") is True
        return Delivered(Remote(id=model_id, url=shown, remember={"run": number}, cancelled=cancelled))

    # A checkpoint.

    def _upload(self, batch: Batch, attempt: Attempt) -> Outcome:
        (entry,) = batch.entries
        snapshot, told = entry.snapshot, json.loads(entry.payload)
        assert snapshot is not None, "a checkpoint has a snapshot"
        staged = events.staged_in(entry.progress, batch.run)
        kept = staged is not None
        if staged is None:
            found = self._stage(batch, attempt, snapshot, best=told["final"] or told["is_best"])
            if not isinstance(found, events.Staged):
                return found
            staged = found
            attempt.on_progress(staged.progress(batch.run))
        file = json.dumps({"modelPath": staged.object, "modelSize": snapshot.size})
        remote = Remote(remember={"file": file})
        if events.number_of(batch.run) is None:
            return Delivered(remote)  # a hub that counts no starts: what is stored counts
        data = events.bound("checkpoint_saved", staged.data, batch.run)
        judged = _NO_OBJECT if kept else ()
        announced = self._event(batch, attempt, "checkpoint_saved", data, judged=judged)
        if not isinstance(announced, Told):
            return announced
        if announced.answer.status in judged:
            # It was there and is gone, as storage is cleared of what nobody announced: the bytes go again.
            attempt.on_progress(None)
            status = announced.answer.status
            return RetryLater(f"{status}: the hub does not find the stored checkpoint; it is sent again")
        return self._taken(announced, "this checkpoint", remote)

    def _stage(
        self, batch: Batch, attempt: Attempt, snapshot: Snapshot, *, best: bool
    ) -> events.Staged | Outcome:
        """Ask for a place and put the bytes there."""
        asked = {"filename": "best.pt" if best else "last.pt", "modelId": batch.run.remote_id}
        number = events.number_of(batch.run)
        if number is not None:
            asked["runId"] = json.loads(number)
        told = self._ask(_UPLOADS, asked, _silent(attempt))
        if not isinstance(told, Told):
            return told
        place = told.json or {}
        url, staged = place.get("uploadUrl"), events.Staged.of(place, self._api.keys())
        if staged is None or not isinstance(url, str):
            return self._api.lacks("valid place for the checkpoint")
        body = File(snapshot.size, lambda: self._open_body(snapshot))
        put = self._storage.put(url, body, attempt)
        return staged if put is None else put

    # Events.

    def _deliver(self, batch: Batch, attempt: Attempt, name: str, data: Mapping[str, Any]) -> Outcome:
        told = self._event(batch, attempt, name, data)
        return self._taken(told, name, Remote()) if isinstance(told, Told) else told

    def _taken(self, told: Told, what: str, remote: Remote) -> Outcome:
        found = told.json or {}
        ignored = found.get("ignored")
        if ignored:
            shown = clean(str(ignored), limit=60, secrets=self._api.keys())
            return Rejected(
                f"the hub ignores {what} ({shown}): this training was started anew somewhere else"
            )
        return Delivered(dataclasses.replace(remote, cancelled=found.get("cancelled") is True))

    def _beat(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Say that the training lives, and how its machine does."""
        run = batch.run
        alive = self._deliver(batch, attempt, "training_progress", events.bound("training_progress", {}, run))
        if not isinstance(alive, Delivered):
            return alive
        told = self._deliver(
            batch, attempt, "system_metrics", events.bound("system_metrics", machine.load(), run)
        )
        return alive if isinstance(told, Delivered | Rejected) else told

    def _event(
        self,
        batch: Batch,
        attempt: Attempt,
        name: str,
        data: Mapping[str, Any],
        address: Address | None = None,
        judged: Collection[int] = (),
    ) -> Told | Outcome:
        """The answer to one event that the hub has received (or that is `judged`), or what came instead."""
        where = address if address is not None else {"modelId": str(batch.run.remote_id)}
        body = {**where, "event": name, "data": data}
        key = (
            None if batch.kind is Kind.HEARTBEAT else events.key_of(batch.idempotency_key, name, where, data)
        )
        told = self._ask(_EVENTS, body, _silent(attempt), idempotency_key=key, judged=judged)
        if not isinstance(told, Told) or told.answer.status in judged:
            return told
        if told.json is None or told.json.get("received") is not True:
            return self._api.unproved(told)
        return told

    def _ask(
        self,
        path: str,
        said: Mapping[str, Any],
        attempt: Attempt,
        *,
        idempotency_key: str | None = None,
        judged: Collection[int] = (),
    ) -> Told | Outcome:
        body = Bytes(json.dumps(said, allow_nan=False).encode())
        return self._api.ask(
            "POST", path, body, attempt, headers=_JSON, idempotency_key=idempotency_key, judged=judged
        )

    def _is_id(self, found: object) -> TypeGuard[str]:
        return is_kept_id(found, self._api.keys())


def _silent(attempt: Attempt) -> Attempt:
    """The attempt for a request whose few bytes are no progress of its upload."""
    return dataclasses.replace(attempt, on_bytes=lambda _sent: None)
