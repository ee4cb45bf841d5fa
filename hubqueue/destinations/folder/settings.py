"""The settings of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from hubqueue.config import forms
from hubqueue.config.setting import setting, unset
from hubqueue.config.settings import DestinationSettings, RateLimits


@dataclass(frozen=True, slots=True)
class FolderSettings(DestinationSettings):
    """A folder: on a NAS, on a USB disk, or one that another program keeps in sync.

    Its address is its path, as it is written: what the path leads to may be another disk (see presence.py). Checkpoints
    are not spaced. Metrics are, since each request becomes a file.
    """

    type: str = "folder"
    url: str = unset("")
    web_url: str = unset("")
    insecure: bool = unset(False)
    ca_bundle: Path | None = unset(None)
    proxy: str | None = unset(None)
    rate_limits: RateLimits = RateLimits(ckpt=timedelta(0))
    connect_timeout: timedelta = unset(timedelta(seconds=10))
    answer_timeout: timedelta = unset(timedelta(seconds=60))
    stall_window: timedelta = unset(timedelta(seconds=60))
    stall_rate: int = unset(1)
    requests_per_minute: int = unset(0)
    uploads_per_minute: int = unset(0)
    upload_hosts: tuple[str, ...] = unset(())
    path: Path | None = setting(
        forms.path(),
        default=None,
        example="/mnt/nas/trainings",
        required=True,
        help="the folder in which each run gets a folder of its own. It is made at its first use if the one above it exists",
    )
    fsync: bool = setting(
        forms.flag(),
        default=True,
        help="`true` counts a file as delivered when its disk has it. `false` is faster; what was delivered seconds "
        "before a power cut may be lost",
    )

    def __post_init__(self) -> None:
        if self.path is not None:
            # A path may have bytes that are no text; the address is stored in a database.
            object.__setattr__(self, "url", str(self.path).encode("utf-8", "backslashreplace").decode())
