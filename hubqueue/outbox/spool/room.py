"""The room of a spool: what the snapshots occupy, what is free, and the removals that are still under way."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.errors import SpoolFull
from hubqueue.domain.quantities import size as bytes_of
from hubqueue.outbox.spool.stored import delete, stored_in


class Room:
    """The room of one spool folder."""

    def __init__(self, path: Path, settings: SpoolSettings) -> None:
        self._path, self._settings = path, settings
        self._removals: list[threading.Thread] = []

    def used(self) -> int:
        """The bytes that snapshots and unfinished copies occupy on the disk: holes in a file do not count."""
        return sum(each.occupied for each in stored_in(self._path))

    def free(self) -> int:
        """The free bytes on the spool's disk."""
        for each in (self._path, *self._path.parents):
            with suppress(OSError):
                return shutil.disk_usage(each).free
        return 0

    def remove_behind(self, paths: Sequence[Path]) -> None:
        """Delete snapshots in a thread. A copy that finds too little room waits for it, and so does the end of the process."""
        removal = threading.Thread(target=delete, args=paths, name="hubqueue-removal", daemon=False)
        try:
            if not threading.main_thread().is_alive():
                raise RuntimeError("the interpreter ends and does not wait for new threads")
            removal.start()
        except RuntimeError:
            delete(*paths)
        else:
            self._removals = [*(each for each in self._removals if each.is_alive()), removal]

    def check(self, size: int) -> None:
        """Raise `SpoolFull` unless a copy of `size` bytes fits."""
        # Read first: a removal that ends during the check may free its room after it.
        removals = self._removals
        shortage = self._shortage(size)
        if shortage and removals:
            for each in removals:
                each.join()
            shortage = self._shortage(size)
        if shortage:
            raise shortage

    def _shortage(self, size: int) -> SpoolFull | None:
        used, cap = self.used(), self._settings.max_bytes
        if used + size > cap:
            hint = "wait for uploads, give some up (hubqueue cancel ENTRY), or raise spool.max_bytes"
            return SpoolFull(
                f"a snapshot of {bytes_of(size)} does not fit: {bytes_of(used)} of {bytes_of(cap)} are used",
                hint=hint,
            )
        free, reserve = self.free(), self._settings.min_free_bytes
        if free - size < reserve:
            hint = "free some space, or lower spool.min_free_bytes"
            message = f"a snapshot of {bytes_of(size)} would leave less than {bytes_of(reserve)} of {bytes_of(free)} free"
            return SpoolFull(message, hint=hint)
        return None
