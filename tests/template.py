"""A migrated outbox, made once and copied for each test that does not test migrations.

A copy has no name and no time origin yet: the first process that opens it sets both, as for a new outbox.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import delete

from hubqueue.outbox.database.schema import about, boots
from hubqueue.outbox.outbox import Outbox, open_outbox


def lay(home: Path, driver: str = "auto") -> Path:
    """Put a copy into a home that does not exist yet. Returns the home."""
    home.mkdir(mode=0o700)
    home.chmod(0o700)
    copy = home / "outbox.db"
    copy.touch(mode=0o600)
    shutil.copyfile(_made(driver), copy)
    return home


def forget(outbox: Outbox) -> None:
    """Remove the name and the time origin of an outbox that was just made."""
    with outbox.database.write() as tx:
        tx.execute(delete(about))
        tx.execute(delete(boots))


@cache
def _made(driver: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hq-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with open_outbox(folder / "home", environ={"HUBQUEUE_OUTBOX__DRIVER": driver}) as outbox:
        forget(outbox)
    made = folder / "home" / "outbox.db"
    assert not made.with_name("outbox.db-wal").exists(), "the copy would lack the contents of the log"
    return made
