"""The transport of the layout: a run, its metrics, its checkpoints and its end, as objects of a store.

    RUN/run.json                                   what the run is, and its state
    RUN/metrics/00000000-00000049.KEY8.jsonl       an object for each delivered batch, never changed
    RUN/checkpoints/epoch-0012/FILES…              and then its manifest.json
    RUN/latest.json, best.json, final.json         the newest manifest of each kind

Promises that an attempt may be repeated after a kill at any step: it makes the same objects with the same bytes. Nothing
that belongs to another run, or that was stored by another program, is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Blocked,
    Delivered,
    Kind,
    Outcome,
    Rejected,
    Remote,
    RunRef,
    Scope,
    SeekableBlocks,
    Snapshot,
    position,
)
from hubqueue.destinations.layout import names
from hubqueue.destinations.layout.checkpoints import Checkpoints
from hubqueue.destinations.layout.records import VERSION, line, moment, written
from hubqueue.destinations.layout.retention import KEEP_ALL, Keeping
from hubqueue.destinations.layout.store import Objects, ObjectStorage, StoreFailed
from hubqueue.domain.plain import json_object
from hubqueue.domain.redact import clean


class LayoutTransport:
    """Sends to one store. Safe to use from several threads."""

    def __init__(
        self,
        store: ObjectStorage,
        open_body: Callable[[Snapshot], SeekableBlocks],
        *,
        keeping: Keeping = KEEP_ALL,
    ) -> None:
        self._store, self._checkpoints = store, Checkpoints(open_body, keeping)

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: the start of a training, metrics, a checkpoint, or its end."""
        run = batch.run
        if batch.kind is not Kind.REGISTRATION and not names.is_run_name(run.remote_id):
            return Blocked("invalid name of the run's folder", Scope.RUN)
        try:
            with self._store.sending(run.remembered, attempt) as objects:
                attempt.on_start()
                match batch.kind:
                    case Kind.REGISTRATION:
                        return _register(objects, batch)
                    case Kind.METRICS:
                        return _send_metrics(objects, batch)
                    case Kind.CKPT:
                        return self._checkpoints.send(objects, batch, attempt)
                    case Kind.COMPLETION:
                        self._checkpoints.sweep(objects, run.remote_id or "")
                        return _complete(objects, batch)
                    case other:
                        raise ValueError(f"a store of objects accepts no {other}")
        except StoreFailed as failed:
            return failed.outcome

    def check(self) -> Outcome:
        """Find out whether objects can be written."""
        try:
            self._store.check()
        except StoreFailed as failed:
            return failed.outcome
        return Delivered()

    def close(self) -> None:
        self._store.close()


# The run.


def _register(objects: Objects, batch: Batch) -> Outcome:
    """Write `run.json`. The folder of a run is the first one that is free, or that has this run's id."""
    run, (entry,) = batch.run, batch.entries
    for name in _candidates(run):
        object_name = f"{name}/{names.RUN}"
        found = objects.read(object_name)
        if found is None:
            if name != run.remote_id and objects.children(name):
                continue  # the folder of another program
            first = _started(run, name, json.loads(entry.payload), moment(entry.enqueued_at), None)
            if objects.create(object_name, first):
                return _registered(objects, name)
            found = objects.read(object_name)
        before = json_object(found)
        if before is None or before.get("id") != run.id:
            continue
        again = _started(run, name, json.loads(entry.payload), moment(entry.enqueued_at), before)
        if again != found:
            objects.replace(object_name, again)
        else:
            objects.create(object_name, again)  # a kill may have left traces of it
        return _registered(objects, name)
    return Blocked(
        f"the folders {clean(' and '.join(names.run_name(run.shown_name, run.id)), limit=300)} have other content",
        Scope.RUN,
    )


def _candidates(run: RunRef) -> Iterator[str]:
    if names.is_run_name(run.remote_id):
        yield run.remote_id or ""
    yield from names.run_name(run.shown_name, run.id)


def _registered(objects: Objects, name: str) -> Outcome:
    return Delivered(Remote(id=name, url=objects.url(name), remember=objects.remember))


def _started(
    run: RunRef, name: str, payload: Mapping[str, Any], at: str, before: Mapping[str, Any] | None
) -> bytes:
    """The record of a run that starts, or continues after an earlier start."""
    record = {"version": VERSION, "id": run.id, "name": name, **payload, "state": "running", "started_at": at}
    if before is not None and isinstance(before.get("started_at"), str) and before["started_at"] != at:
        record |= {"started_at": before["started_at"], "continued_at": at}
    return written(record)


def _complete(objects: Objects, batch: Batch) -> Outcome:
    """Write the state into `run.json`."""
    run, (entry,) = batch.run, batch.entries
    object_name = f"{run.remote_id}/{names.RUN}"
    found = objects.read(object_name)
    before = json_object(found)
    if before is not None and before.get("id") != run.id:
        return Blocked(f"the folder {clean(str(run.remote_id), limit=200)} has another run", Scope.RUN)
    known = before or {"version": VERSION, "id": run.id, "name": run.remote_id, "model": run.model}
    kept = {name: value for name, value in known.items() if name not in ("results", "error", "ended_at")}
    after = written({**kept, **json.loads(entry.payload), "ended_at": moment(entry.enqueued_at)})
    if after != found:
        objects.replace(object_name, after)
    return Delivered()


# Its metrics.


def _send_metrics(objects: Objects, batch: Batch) -> Outcome:
    """Write one object, under a name that only this batch has."""
    numbers, content = [], []
    for entry in batch.entries:
        at = position(entry)
        numbers.append(at.step if at.step is not None else at.epoch or 0)
        logged = {**at.given, "time": moment(entry.enqueued_at), "metrics": json.loads(entry.payload)}
        content.append(line(logged))
    body, key = b"".join(content), batch.idempotency_key.replace("-", "")
    for unique in (key[:8], key):
        name = f"{batch.run.remote_id}/{names.metrics_name(numbers, unique)}"
        if objects.create(name, body) or objects.read(name) == body:
            return Delivered()
    return Rejected(f"other content is in {clean(name, limit=300)}")
