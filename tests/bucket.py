"""Another package with its own type of destination, installed for a test."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from hubqueue.config import registry

CODE = '''
from dataclasses import dataclass
from datetime import timedelta

from hubqueue.config import forms
from hubqueue.config.declaration import Destination
from hubqueue.config.setting import setting
from hubqueue.config.settings import DestinationSettings, RateLimits
from hubqueue.domain.entry import Kind


@dataclass(frozen=True, slots=True)
class BucketSettings(DestinationSettings):
    """A bucket."""

    type: str = "bucket"
    region: str = setting(forms.text("name"), default="eu-central-1", help="the region. The bucket is in it")
    part_bytes: int = setting(forms.size(least=5_000_000), default=8_388_608, help="the size of one part")
    uploads_per_minute: int = 7
    rate_limits: RateLimits = RateLimits(heartbeat=timedelta(0))


def _none(*_given, **_named):
    raise NotImplementedError


DESTINATION = Destination(
    type="bucket", settings=BucketSettings, lanes=(Kind.CKPT,), identify=_none, registration=_none, open=_none
)
'''


@contextlib.contextmanager
def installed(folder: Path, *, code: str = CODE) -> Iterator[Path]:
    """Install the type `bucket` for the duration of the context; returns a folder for PYTHONPATH."""
    (folder / "hubqueue_bucket.py").write_text(code)
    about = folder / "hubqueue_bucket-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hubqueue-bucket\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hubqueue.destinations]\nbucket = hubqueue_bucket:DESTINATION\n")
    sys.path.insert(0, str(folder))
    _look_again()
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("hubqueue_bucket", None)
        _look_again()


def _look_again() -> None:
    importlib.invalidate_caches()
    registry.declaration.cache_clear()
    registry._entry_points.cache_clear()
