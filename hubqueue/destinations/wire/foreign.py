"""Responses that are not the hub's own: of a proxy, a gateway, a login page, another server (decision 0023).

Promises that such a response never makes an entry dead and never holds anything: it is tried again, with the reason. The
hub's own format is a complete JSON object; the type that the headers announce does not count.
"""

from __future__ import annotations

import re
from datetime import timedelta

from hubqueue.destinations.wire.message import Response, phrase_of
from hubqueue.domain.outcome import FOREIGN, RetryLater
from hubqueue.domain.redact import clean

# Sent by something between this machine and the hub, whatever its body is: a proxy, the login page of a network.
_BETWEEN = (407, 511)
# They concern the key, the address or the path, so a smaller batch gets the same response.
_WHOLE = (401, 404, 405, 407, 410, 511)
_PAGE = (b"<!doctype html", b"<html")
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>?", re.DOTALL | re.IGNORECASE)
_SHOWN = 2048


def is_foreign(response: Response) -> bool:
    """Whether a response is not the hub's own."""
    return response.status in _BETWEEN or response.object() is None


def is_page(response: Response) -> bool:
    """Whether the body is a page for people, or there is none, as from a proxy or a load balancer."""
    start = response.body[:_SHOWN].lstrip().lower()
    return not start or start.startswith(_PAGE)


def foreign(
    response: Response,
    *,
    host: str,
    wait: timedelta | None = None,
    secrets: tuple[str, ...] = (),
    shown: bool = True,
) -> RetryLater:
    """The outcome of a response that is not the hub's own. `wait` is what its headers ask for.

    `shown`: the reason has the beginning of its text. What refuses this very content (a size limit, a filter) refuses it
    again, so a batch is split in the end.
    """
    status = response.status
    text = _TAGS.sub(" ", response.body[:_SHOWN].decode("utf-8", "replace"))
    start = clean(text, limit=60, secrets=secrets) if shown and response.is_plain else ""
    what = (
        f"{host} responded {phrase_of(status)} {_form(response)}, {FOREIGN} (proxy, login page or wrong URL?)"
    )
    refused = 400 <= status < 500 or status in _BETWEEN
    suspect = refused and status not in _WHOLE
    return RetryLater(what + (f": {start}" if start else ""), wait, suspect=suspect, foreign=refused)


def _form(response: Response) -> str:
    start = response.body[:_SHOWN].lstrip().lower()
    if not response.is_plain:
        return "with a compressed body"
    if not start:
        return "without a body"
    if start.startswith(_PAGE):
        return "with an HTML page"
    if start.startswith(b"<"):
        return "with an XML document"
    if response.cut:
        return "with a body that is too long or was cut off"
    return "with JSON" if isinstance(response.json(), dict) else "with a text that is no JSON object"
