"""The settings of a server of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from hubqueue.config import forms
from hubqueue.config.setting import setting
from hubqueue.config.settings import DestinationSettings


@dataclass(frozen=True, slots=True)
class HttpSettings(DestinationSettings):
    """A server of one's own that speaks the open protocol (docs/http.md). `url` is its API root."""

    type: str = "http"
    url: str = setting(
        forms.web_address(),
        default="",
        absent="must be set",
        example="https://runs.example.org",
        required=True,
        help="the API root; no user, query or fragment",
    )
    sign: bool = setting(
        forms.flag(),
        default=True,
        help="`true` signs each request with a second secret, the signing key. `false` sends only the token",
    )
