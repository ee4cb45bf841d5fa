"""Uploading the bytes of a checkpoint to a signed URL.

Promises: no key is sent; requests go only to the hub's own origin (scheme, host and port) and to hosts that the
configuration allows, over https at port 443 or the configured port; neither the URL nor its signature appears in a log, a
message or a row. A 2xx proves no delivery: the hub reports later whether it has the object.
"""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from hubqueue.config.forms import is_plain_remote
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt
from hubqueue.destinations.wire.body import File
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.exchange import Wire
from hubqueue.destinations.wire.foreign import foreign, is_page
from hubqueue.destinations.wire.message import Request, Response
from hubqueue.destinations.wire.waits import asked_wait
from hubqueue.domain.outcome import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.domain.redact import clean

_TYPE = {"Content-Type": "application/octet-stream"}
_LONGEST_URL = 8192
_INVALID = RetryLater("the hub gave an invalid upload URL")
_HTTP, _HTTPS = 80, 443
# A refused signed URL is useless; the next attempt asks for a new one.
_NEW_URL = timedelta(seconds=1)


class Storage:
    """The storage that a destination sends checkpoints to. Safe to use from several threads."""

    def __init__(self, settings: DestinationSettings) -> None:
        self._settings, self._endpoint = settings, Endpoint.of(settings)
        self._own = _origin(urlsplit(settings.url))
        self._allowed_hosts = frozenset(_with_port(each) for each in settings.upload_hosts)
        self._wires: dict[str, Wire] = {}
        self._lock = threading.Lock()

    def put(self, url: str, body: File, attempt: Attempt) -> Outcome | None:
        """Upload a body; None when the storage has accepted it."""
        parts = self._allowed(url)
        if not isinstance(parts, SplitResult):
            return parts
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        secrets = (target, *(value for _, value in parse_qsl(parts.query) if len(value) >= 8))
        wire = self._wire(parts)
        response = wire.exchange(Request("PUT", target, _TYPE, body), attempt, secrets=secrets)
        return _outcome(response, wire.host) if isinstance(response, Response) else response

    def close(self) -> None:
        """Close the connections that are kept alive."""
        with self._lock:
            wires, self._wires = list(self._wires.values()), {}
        for wire in wires:
            wire.close()

    def _allowed(self, url: str) -> SplitResult | Outcome:
        try:
            parts = urlsplit(url)
            origin = _origin(parts)
        except ValueError:
            return _INVALID
        if not _is_usable(url, parts):
            return _INVALID
        if origin == self._own:
            return parts
        scheme, host, port = origin
        shown, setting = clean(host, limit=80), f"destinations.{self._settings.name}.upload_hosts"
        if (host, port) not in self._allowed_hosts:
            at_other_ports = host == self._own[1] or host in {each for each, _ in self._allowed_hosts}
            entry = shown if port == _HTTPS and not at_other_ports else f"{shown}:{port}"
            if at_other_ports:
                shown = f"port {port} of {shown}"
            return Blocked(
                f"the hub directs checkpoints to {shown}, which is not allowed; "
                f'if this host is correct, add "{entry}" to {setting}',
                Scope.DESTINATION,
            )
        if (
            is_plain_remote(f"{scheme}://{parts.netloc}", self._settings.proxy)
            and not self._settings.insecure
        ):
            return Blocked(f"the hub directs checkpoints to {shown} without encryption", Scope.DESTINATION)
        return parts

    def _wire(self, parts: SplitResult) -> Wire:
        origin = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            if origin not in self._wires:
                self._wires[origin] = Wire(self._endpoint.at(origin))
            return self._wires[origin]


def _outcome(response: Response, host: str) -> Outcome | None:
    """The outcome of the storage's status. The text of the response is not shown: it may repeat the URL.

    A storage responds with XML or JSON, never with a page for people.
    """
    status = response.status
    if 200 <= status < 300:
        return None
    wait = asked_wait(response.headers, now=datetime.now(UTC))
    if status in (407, 511) or (400 <= status < 500 and is_page(response)):
        return foreign(response, host=host, wait=wait, shown=False)
    if status == 413:
        return Rejected(f"413: {host} does not accept a checkpoint of this size")
    if 300 <= status < 400:
        return RetryLater(f"{status}: {host} redirects the upload; not followed")
    if status in (408, 429) or status >= 500:
        return RetryLater(f"{status}: {host} does not accept the checkpoint now", wait)
    return RetryLater(
        f"{status}: {host} refused the upload URL; the next attempt asks for a new one", wait or _NEW_URL
    )


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port. Raises `ValueError`."""
    return parts.scheme, parts.hostname or "", parts.port or (_HTTP if parts.scheme == "http" else _HTTPS)


def _with_port(host: str) -> tuple[str, int]:
    """A host of the configuration with its port, 443 without one."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return host.strip("[]"), _HTTPS


def _is_usable(url: str, parts: SplitResult) -> bool:
    """Whether every program reads this URL in the same way: no user info, and no path with another spelling."""
    segments = unquote(parts.path).split("/")
    return (
        re.fullmatch(r"[!-\[\]-~]+", url) is not None
        and len(url) <= _LONGEST_URL
        and parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and parts.port != 0
        and "@" not in parts.netloc
        and not parts.fragment
        and parts.path.startswith("/")
        and "//" not in parts.path
        and not any(each in (".", "..") or "\\" in each for each in segments)
    )
