"""The progress of running uploads, for processes that wait for them or show them: one small file a run, in the locks' folder.

The worker writes it (see `worker/progress.py`).

Best effort: never synced, never delays an upload, and deleted when the upload ends. The file of a killed worker is not
shown: it names the worker, whose lock says whether it lives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubqueue.config.home import Home
from hubqueue.config.ownership import read_small
from hubqueue.domain.clock import SystemClock
from hubqueue.outbox.locks import is_held

_PREFIX = "upload-"


@dataclass(frozen=True, slots=True)
class Upload:
    """A running upload: bytes sent, bytes in total, bytes a second (None while the rate is unknown)."""

    sent: int
    size: int
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        """The remaining seconds at this rate."""
        return (self.size - self.sent) / self.rate if self.rate else None


def upload_of(home: Home, run_id: str) -> Upload | None:
    """The progress of a run's running upload; None without one, or when it is unknown."""
    clock = SystemClock()
    try:
        fields = json.loads(read_small(upload_file(home, run_id)))
        sent, size, since, then = (fields[name] for name in ("sent", "size", "since", "sent_then"))
        silent = clock.elapsed() - fields["at"] - fields["gap"]
        if fields["boot"] != clock.boot_id or not 0 <= then <= sent <= size:
            return None
        # A longer pause than usual counts as well: on a stalled connection the rate falls.
        passed = fields["at"] - since + max(0.0, silent)
        if fields["worker"] is not None and not is_held(home.locks / f"worker-{fields['worker']}.lock"):
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
