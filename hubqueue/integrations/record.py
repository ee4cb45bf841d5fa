"""`hubqueue.json`: a file in the folder of a training that names its run, so that a resumed training continues that run.

Promises: the file is replaced as a whole, and only when something has changed. A file that cannot be read counts as missing;
one that cannot be written is a log line.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from hubqueue.config.filesystem.ownership import read_small
from hubqueue.producer.survival import logger

_LOG = logger()
NAME = "hubqueue.json"


def read_record(folder: Path, name: str = NAME) -> dict[str, str]:
    """What the record says: `run` (the `Run.id`), `model`, and what else was written. Empty without a record."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(read_small(folder / name))
        if isinstance(record, dict):
            return {key: text for key, text in record.items() if isinstance(text, str)}
    return {}


def write_record(folder: Path, record: Mapping[str, str | None], name: str = NAME) -> None:
    """Record the run of the training in this folder. Empty values are left out."""
    path = folder / name
    text = json.dumps({name: value for name, value in record.items() if value}, indent=2) + "\n"
    with contextlib.suppress(OSError):
        if read_small(path) == text.encode():
            return
    draft = path.with_name(f".{name}.{secrets.token_hex(4)}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        _LOG.warning(
            "if this training is resumed, it will be a new run: cannot write %s: %s", path, error.strerror
        )
