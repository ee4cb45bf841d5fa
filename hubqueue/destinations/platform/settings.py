"""The settings of a Platform."""

from __future__ import annotations

from dataclasses import dataclass

from hubqueue.config import forms
from hubqueue.config.setting import setting
from hubqueue.config.settings import DestinationSettings

_VENDOR = "https://platform.ultralytics.com"


@dataclass(frozen=True, slots=True)
class PlatformSettings(DestinationSettings):
    """A Platform: by default the vendor's own, with its limits as documented in 2026.

    Its signed URLs point to Google Cloud Storage.
    """

    type: str = "platform"
    url: str = _VENDOR
    web_url: str = _VENDOR
    requests_per_minute: int = 100
    uploads_per_minute: int = 10
    upload_hosts: tuple[str, ...] = ("storage.googleapis.com",)
    environment: bool = setting(
        forms.flag(),
        default=True,
        help="`true` sends facts about the training's machine: its command line, repository, hardware and load, with "
        "keys masked. `false` sends only versions of Python and packages",
    )
