"""How far the running uploads are, for the processes that wait for them or show them: one small file a run, in the locks' folder.

The worker writes it (see `worker/progress.py`).

Best effort: never synced, never in the way of an upload, and gone when the upload has ended. What a killed worker left
behind is not shown: the file names its worker, whose lock says whether it lives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubqueue.config.filesystem.ownership import read_small
from hubqueue.config.home import Home
from hubqueue.domain.clock import SystemClock
from hubqueue.outbox.locks import is_held

_PREFIX = "upload-"


@dataclass(frozen=True, slots=True)
class Upload:
    """A running upload: bytes sent, bytes in all, bytes a second (None as long as it cannot be told)."""

    sent: int
    size: int
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        """How long it still takes at this rate."""
        return (self.size - self.sent) / self.rate if self.rate else None


def upload_of(home: Home, run_id: str) -> Upload | None:
    """How far a run's running upload is; None when there is none, or nobody tells."""
    clock = SystemClock()
    try:
        told = json.loads(read_small(upload_file(home, run_id)))
        sent, size, since, then = (told[name] for name in ("sent", "size", "since", "sent_then"))
        silent = clock.elapsed() - told["at"] - told["gap"]
        if told["boot"] != clock.boot_id or not 0 <= then <= sent <= size:
            return None
        # Silence that is longer than usual counts as well: a line that stands still shows a rate that falls.
        passed = told["at"] - since + max(0.0, silent)
        if told["worker"] is not None and not is_held(home.locks / f"worker-{told['worker']}.lock"):
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Upload(sent, size, (sent - then) / passed if sent > then and passed > 0 else None)


def uploads(home: Home) -> Iterator[tuple[str, Upload]]:
    """The running uploads of a home, by run."""
    for file in sorted(home.locks.glob(f"{_PREFIX}*")):
        run_id = file.name.removeprefix(_PREFIX)
        found = upload_of(home, run_id)
        if found is not None:
            yield run_id, found


def upload_file(home: Home, run_id: str) -> Path:
    """The file of a run's running upload."""
    return home.locks / f"{_PREFIX}{run_id}"
