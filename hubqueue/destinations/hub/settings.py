"""The settings of a HUB."""

from __future__ import annotations

from dataclasses import dataclass

from hubqueue.config.settings import DestinationSettings


@dataclass(frozen=True, slots=True)
class HubSettings(DestinationSettings):
    """A HUB: by default the vendor's own."""

    type: str = "hub"
    url: str = "https://api.ultralytics.com"
    web_url: str = "https://hub.ultralytics.com"
