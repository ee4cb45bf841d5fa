"""The ballast: disk space that is reserved for the moment when the disk is full."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from hubqueue.config.home import open_private


class Ballast:
    """A file that only takes up space. Deleting it on a full disk lets the outbox settle what was sent."""

    def __init__(self, path: Path, size: int = 4 * 1024 * 1024) -> None:
        self._path, self._size = path, size

    def create(self) -> bool:
        """Create a missing file when the disk has ample space. Returns whether the file exists."""
        if self._path.is_file():
            return True
        try:
            if shutil.disk_usage(self._path.parent).free < 16 * self._size:
                return False
            descriptor = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                # Written in full: deleting a sparse file would free nothing.
                for _ in range(self._size // 65536):
                    os.write(descriptor, secrets.token_bytes(65536))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> bool:
        """Delete the file. Returns whether there was one."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
