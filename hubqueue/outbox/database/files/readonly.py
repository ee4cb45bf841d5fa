"""Connections to a SQLite file that may only be read: nothing is written beside it, and it is not locked for writing.

A database in WAL mode needs its `-shm` file, and one that a crash interrupted must be rolled back. Where neither is
possible in its folder, a private copy is read.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hubqueue.outbox.database.sqlite import SIDE_FILES, uri_of

_PROBE = "SELECT count(*) FROM sqlite_master"


def connect(path: Path, driver: ModuleType, **options: Any) -> Any:
    """A connection that reads what was committed. Raises the driver's error when even a copy cannot be read."""
    # Without side files nobody is writing: SQLite may read the file without looking for them.
    has_side = any(path.with_name(path.name + suffix).exists() for suffix in SIDE_FILES)
    for how in ("mode=ro", *([] if has_side else ["immutable=1"])):
        connection = driver.connect(uri_of(path, how), uri=True, **options)
        try:
            connection.execute(_PROBE).fetchone()
        except driver.OperationalError:
            connection.close()
        else:
            return connection
    return _copied(path, driver, options)


def _copied(path: Path, driver: ModuleType, options: dict[str, Any]) -> Any:
    """A connection to a copy in memory, made of a copy of the files that SQLite may recover."""
    with tempfile.TemporaryDirectory(prefix="hubqueue-") as folder:
        copy = Path(folder, path.name)
        for suffix in ("", "-wal", "-journal"):
            side = path.with_name(path.name + suffix)
            if side.exists():
                shutil.copyfile(side, copy.with_name(copy.name + suffix))
        source = driver.connect(str(copy), **options)
        try:
            source.execute(_PROBE).fetchone()
            in_memory = driver.connect(":memory:", **options)
            source.backup(in_memory)
        finally:
            source.close()
    return in_memory
