"""Metrics as points of an MLflow run: a name, a value, a step and a time.

MLflow keeps each different point, and an equal one once. So a point is always sent with the same time: when its entry was
saved. The entry that follows another one with the same key has that one's values as well (decision 0022); `Sent` has the times
with which they were sent, so no point gets another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from hubqueue.destinations.base import (
    Aborted,
    Attempt,
    Batch,
    Delivered,
    Entry,
    Outcome,
    Remote,
    RetryLater,
    position,
)
from hubqueue.destinations.mlflow.names import named, number
from hubqueue.destinations.mlflow.server import LARGE, Server, code_of
from hubqueue.destinations.wire.api import ApiResponse

SENT = "points"
"""What is remembered of a run: see `Sent`."""
MOST = 1000
# MLflow's limit is a million bytes for the whole request.
_MOST_BYTES = 900_000
_PAGE, _MOST_PAGES = 10_000, 10_000
_LONGEST_MEMORY = 8000
_DIGEST = 4  # bytes

Point = dict[str, Any]


class Sent:
    """The times of the newest points that were sent: by the key of their entry, and by name and value.

    Its text is kept by the outbox, so it has hashes instead of names, and only of the last entries.
    """

    def __init__(self, *texts: object) -> None:
        self._of: dict[str, dict[str, int]] = {}
        for text in texts:
            # A damaged text is left out: at worst a point gets a second time.
            with suppress(ValueError, TypeError, RecursionError):
                for key, times in _read(text).items():
                    self._add(key, times)

    def time_of(self, key: str, name: str, value: float) -> int | None:
        """The time of a point in milliseconds; None if it is not known here."""
        return self._of.get(key, {}).get(_digest(name, value))

    def after(self, key: str) -> int:
        """The first time after all known points of an entry: of two values with one time MLflow shows the larger one."""
        return max(self._of.get(key, {}).values(), default=-1) + 1

    def note(self, key: str, points: list[Point]) -> None:
        """Points of this entry were sent."""
        self._add(key, {_digest(each["key"], each["value"]): each["timestamp"] for each in points})

    def _add(self, key: str, times: Mapping[str, int]) -> None:
        self._of[key] = {**self._of.pop(key, {}), **times}

    @property
    def text(self) -> str:
        """Its text: as many of the last entries as fit."""
        kept: list[str] = []
        room = _LONGEST_MEMORY
        for key, times in reversed(self._of.items()):
            groups: dict[int, str] = {}
            for digest, time in times.items():
                groups[time] = groups.get(time, "") + digest
            written = json.dumps([key, list(groups.items())], separators=(",", ":"))
            room -= len(written) + 1
            if room < 0:
                break
            kept.append(written)
        return f"[{','.join(reversed(kept))}]"


def _read(text: object) -> dict[str, dict[str, int]]:
    return {
        str(key): {
            digests[at : at + 2 * _DIGEST]: int(time)
            for time, digests in groups
            for at in range(0, len(digests), 2 * _DIGEST)
        }
        for key, groups in json.loads(str(text or "[]"))
    }


def _digest(name: str, value: float) -> str:
    return hashlib.blake2b(f"{name}={value!r}".encode("utf-8", "replace"), digest_size=_DIGEST).hexdigest()


class Metrics:
    """Sends metrics. Safe to use from several threads, each with another run."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # `Sent` of the runs whose last response did not arrive: MLflow may have those points.
        self._uncertain: dict[str, str] = {}

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send all points of a batch, in as few requests as MLflow allows."""
        run_id = batch.run.remote_id or ""
        sent = Sent(batch.run.remembered.get(SENT), self._uncertain.get(run_id))
        points = list(_points(batch, sent))
        self._uncertain[run_id] = sent.text
        failed = self._send(run_id, points, batch.idempotency_key, attempt)
        if not isinstance(failed, RetryLater | Aborted):
            self._uncertain.pop(run_id, None)
        return failed or Delivered(Remote(remember={SENT: sent.text}))

    def _send(self, run_id: str, points: list[Point], key: str, attempt: Attempt) -> Outcome | None:
        done = 0
        for at, some in enumerate(_requests(points)):
            failed = _log(self._server, run_id, some, attempt.beyond(done), f"{key}/{at}" if at else key)
            if failed is not None:
                return failed
            done += len(json.dumps(some))
        return None


def _points(batch: Batch, sent: Sent) -> Iterator[Point]:
    for entry in batch.entries:
        of_entry = _points_of(entry, sent)
        sent.note(entry.key, of_entry)
        yield from of_entry


def _points_of(entry: Entry, sent: Sent) -> list[Point]:
    at = position(entry)
    saved_at = max(entry.enqueued_at // 1000, sent.after(entry.key))
    step = at.step if at.step is not None else at.epoch or 0
    logged = json.loads(entry.payload)
    values = {name: found for name, value in logged.items() if (found := number(value)) is not None}
    return [
        {
            "key": name,
            "value": value,
            "timestamp": saved_at if (before := sent.time_of(entry.key, name, value)) is None else before,
            "step": step,
        }
        for name, value in named(values).items()
    ]


def _requests(points: Iterable[Point]) -> Iterator[list[Point]]:
    """The points of each request. Also without points there is one: only a response proves that the run is there."""
    some, room, is_first = list[Point](), _MOST_BYTES, True
    for each in points:
        size = len(json.dumps(each)) + 2
        if len(some) == MOST or size > room:
            yield some
            some, room, is_first = [], _MOST_BYTES, False
        some.append(each)
        room -= size
    if some or is_first:
        yield some


def _log(
    server: Server, run_id: str, points: list[Point], attempt: Attempt, idempotency_key: str | None
) -> Outcome | None:
    """Send the points of one request; None when MLflow has them."""
    payload = {"run_id": run_id, "metrics": points}
    response = server.post("runs/log-batch", payload, attempt, idempotency_key=idempotency_key, judged=(400,))
    if not isinstance(response, ApiResponse):
        return response
    if response.status != 400:
        return None
    if code_of(response) != "BAD_REQUEST":
        return server.refused(response)
    # Its database has refused them. A server may respond so to points that it has already (2.22 to NaN): find out which.
    stored = _stored(server, run_id, {each["key"] for each in points}, attempt)
    if not isinstance(stored, set):
        return stored
    missing = [each for each in points if _identity(each) not in stored]
    if len(missing) == len(points):
        return server.refused(response)
    return _log(server, run_id, missing, attempt, None) if missing else None


def _stored(
    server: Server, run_id: str, names: set[str], attempt: Attempt
) -> set[tuple[object, ...]] | Outcome:
    """All points with these names that MLflow has."""
    found: set[tuple[object, ...]] = set()
    for name in sorted(names):
        query = {"run_id": run_id, "metric_key": name, "max_results": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            response = server.get("metrics/get-history", query, attempt, most=LARGE)
            if not isinstance(response, ApiResponse):
                return response
            points = (response.json or {}).get("metrics", [])
            found |= {_identity(each) for each in points if isinstance(each, dict)}
            following = (response.json or {}).get("next_page_token")
            if not following or not isinstance(following, str):
                break
            query["page_token"] = following
    return found


def _identity(point: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes a point different from others. Whole numbers of 64 bits may be texts in JSON."""
    times = (int(point.get(name) or 0) for name in ("timestamp", "step"))
    return (point.get("key"), float(point.get("value") or 0.0), *times)
