"""A training on the fake Platform, built only by applying facts in order. It holds no API keys."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hubqueue.sandbox.archive import Fact


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One stored event of a training on Platform, in the order in which they were stored.

    `data` is as it was sent. `run_id` is the run that it belongs to. `ignored` is `stale_instance` for an
    event of a run that a newer one has replaced: it changed nothing.
    """

    event: str
    data: dict[str, Any]
    run_id: int
    at: datetime
    ignored: str | None = None


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One checkpoint upload to Platform: its URL is issued, its bytes are staged, the staged object is promoted.

    `run_id` is None for an upload that named no run: it counts as soon as its bytes have arrived. `object_path`
    is the protocol's `gcsPath`. `size` (bytes), `sha256` (hex) and `path` are None until the bytes have arrived.
    `with_key`: the upload had an `Authorization` header, which the storage must not see.
    """

    filename: str
    run_id: int | None
    object_path: str
    upload_path: str
    expires_at: datetime
    token: str = field(repr=False)
    size: int | None = None
    sha256: str | None = None
    path: Path | None = None
    with_key: bool = False
    staged_at: datetime | None = None
    promoted_at: datetime | None = None


@dataclass(slots=True)
class RunRecord:
    """One training on Platform. `name` is the assigned name, `asked_name` the requested one (`train-2`, `train`).

    `run_ids` are the ids of its starts, the current one last. `uploads` are all whose URL was issued.
    """

    model_id: str
    project: str
    asked_name: str
    name: str
    created_at: datetime
    run_ids: list[int] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    uploads: list[UploadRecord] = field(default_factory=list)
    cancelled: bool = False

    @property
    def run_id(self) -> int:
        """The id of the current run; older ids are stale."""
        return self.run_ids[-1]

    @property
    def state(self) -> str:
        """`training`, `complete`, `failed` or `cancelled` (no later event changes it)."""
        if self.cancelled:
            return "cancelled"
        states = {
            "training_started": "training",
            "training_complete": "complete",
            "training_failed": "failed",
        }
        ends = (states[each.event] for each in reversed(self.counted) if each.event in states)
        return next(ends, "training")

    @property
    def counted(self) -> list[EventRecord]:
        """The events that were not ignored."""
        return [each for each in self.events if each.ignored is None]

    @property
    def epochs(self) -> dict[int, dict[str, Any]]:
        """The data of the last `epoch_end` of each epoch."""
        ends = [each for each in self.counted if each.event == "epoch_end"]
        return {each.data["epoch"]: each.data for each in sorted(ends, key=lambda each: each.data["epoch"])}

    @property
    def staged(self) -> list[UploadRecord]:
        """The objects that arrived and were not promoted."""
        return [each for each in self.uploads if each.staged_at is not None and each.promoted_at is None]

    @property
    def files(self) -> list[UploadRecord]:
        """The promoted checkpoints, in the order of their promotion."""
        promoted = [(each.promoted_at, each) for each in self.uploads if each.promoted_at is not None]
        return [each for _, each in sorted(promoted, key=lambda pair: pair[0])]

    @property
    def duplicates(self) -> list[EventRecord]:
        """The events that are identical to an earlier event of the same run."""
        seen: set[tuple[str, int, str]] = set()
        found = []
        for each in self.events:
            content = (each.event, each.run_id, json.dumps(each.data, sort_keys=True))
            if content in seen:
                found.append(each)
            seen.add(content)
        return found


def begun(fact: Fact) -> RunRecord:
    """The training that a `tracked` fact is about, without its first run."""
    return RunRecord(
        model_id=fact["model"],
        project=fact["project"],
        asked_name=fact["asked"],
        name=fact["name"],
        created_at=datetime.fromisoformat(fact["at"]),
    )


def apply(fact: Fact, run: RunRecord, folder: Path) -> None:
    """Apply one fact. `folder` holds the checkpoints of this training."""
    at = datetime.fromisoformat(fact["at"])
    match fact["fact"]:
        case "tracked" | "event":
            event = EventRecord(fact["event"], fact["data"], fact["run"], at, fact.get("ignored"))
            if event.event == "training_started" and event.run_id not in run.run_ids:
                run.run_ids.append(event.run_id)
            run.events.append(event)
            if fact.get("promotes") is not None:
                _change(run, fact["promotes"], promoted_at=at)
        case "url":
            run.uploads.append(
                UploadRecord(
                    filename=fact["filename"],
                    run_id=fact["run"],
                    object_path=fact["object"],
                    upload_path=fact["upload_path"],
                    expires_at=datetime.fromisoformat(fact["expires_at"]),
                    token=fact["token"],
                )
            )
        case "staged":
            _change(
                run,
                fact["object"],
                size=fact["size"],
                sha256=fact["sha256"],
                path=folder / fact["file"],
                with_key=fact["with_key"],
                staged_at=at,
                promoted_at=at if fact["counts"] else None,
            )
        case "cancelled":
            run.cancelled = True


def find(run: RunRecord, object_path: str) -> UploadRecord | None:
    """The upload of this object, or None."""
    return next((each for each in run.uploads if each.object_path == object_path), None)


def copied(run: RunRecord) -> RunRecord:
    """A copy that later events do not change."""
    return dataclasses.replace(
        run, run_ids=list(run.run_ids), events=list(run.events), uploads=list(run.uploads)
    )


def _change(run: RunRecord, object_path: str, **changes: object) -> None:
    for index, each in enumerate(run.uploads):
        if each.object_path == object_path:
            run.uploads[index] = dataclasses.replace(each, **changes)  # type: ignore[arg-type]
