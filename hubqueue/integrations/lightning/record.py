"""The file beside the checkpoints that names their run, so that a training that resumes from one of them continues that run."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from pathlib import Path

from hubqueue.config.filesystem.ownership import read_small
from hubqueue.producer.survival import logger

_LOG = logger()
_RECORD = "hubqueue.json"


def recorded(folder: Path) -> str | None:
    """The id of the run that has written the checkpoints of a folder; None if it is not known."""
    with suppress(OSError, ValueError):
        record = json.loads(read_small(folder / _RECORD))
        if isinstance(record, dict) and isinstance(record.get("run"), str):
            return str(record["run"])
    return None


def write_record(folder: Path, run_id: str) -> None:
    """Name the run that writes checkpoints into a folder. An error is logged."""
    draft = folder / f".{_RECORD}.{secrets.token_hex(4)}"
    try:
        draft.write_text(json.dumps({"run": run_id}) + "\n", encoding="utf-8")
        draft.replace(folder / _RECORD)
    except OSError as error:
        draft.unlink(missing_ok=True)
        _LOG.warning(
            "if this training is resumed, it will be a new run: cannot write in %s: %s",
            folder,
            error.strerror,
        )
