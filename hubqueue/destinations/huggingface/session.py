"""The requests of huggingface_hub, sent by `wire`.

Promises the deadlines, the proxy, the certificates and the stop of every other destination. One call of the library is sent
as it is: nothing is retried, no redirect is followed, and the library never waits. Promises that the token goes only to the
configured server, and that no logger of the library sees a request of this destination.

The library has one HTTP client for a whole process. Its `send` is replaced on that client, for the threads that are in a
call of hubqueue; the calls of all other code go on to the client as before. No variable and no setting of the library is
changed, and no progress bar is shown.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import get_session

from hubqueue.config.forms import is_plain_remote
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Blocked, Outcome, RetryLater, Scope
from hubqueue.destinations.huggingface.body import Streamed
from hubqueue.destinations.huggingface.errors import outcome_of
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.destinations.wire.body import Body, Bytes
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.exchange import Wire
from hubqueue.destinations.wire.foreign import foreign, is_page
from hubqueue.destinations.wire.message import Request, Response
from hubqueue.domain.outcome import FOREIGN
from hubqueue.domain.redact import clean

# In bytes: a page of a list with a thousand entries.
_MOST = 8 * 1024 * 1024
# These belong to the connection, or name the packages of this environment.
_NOT_SENT = frozenset(
    {"connection", "content-length", "host", "transfer-encoding", "user-agent", "accept-encoding"}
)
# What the caller of the library handles: there is no such thing, there is one, or it has changed.
_USUAL = (404, 409, 410, 412)
_LOGGERS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")


@dataclass(slots=True)
class Call:
    """A call of the library in this thread. `attempt` receives the bytes of files, `wires` send the requests."""

    wires: Wires
    attempt: Attempt
    token: str
    secrets: tuple[str, ...]
    sent: bool = False


class _Current(threading.local):
    call: Call | None = None


_CURRENT = _Current()


class _Unlogged(logging.Filter):
    """Drops what the library logs about the calls of this destination, and nothing else."""

    seen = 0  # how many loggers there were

    def filter(self, _record: logging.LogRecord) -> bool:
        return _CURRENT.call is None


_UNLOGGED = _Unlogged()


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Send what the library requests in this thread by `call`."""
    if len(logging.root.manager.loggerDict) != _UNLOGGED.seen:
        _silence()
    client = get_session()
    if not isinstance(client.__dict__.get("send"), _Send):
        client.send = _Send(client.send, _class_of_responses(client))  # type: ignore[method-assign]
    before, _CURRENT.call = _CURRENT.call, call
    try:
        yield
    finally:
        _CURRENT.call = before


class _Send:
    """Replaces the method `send` of the library's client."""

    def __init__(self, usual: Callable[..., Any], responses: Any) -> None:
        self._usual, self._responses = usual, responses

    def __call__(self, request: Any, **options: Any) -> Any:
        call = _CURRENT.call
        if call is None:
            return self._usual(request, **options)
        call.sent = True
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_SENT}
        response = call.wires.ask(
            request.method, str(request.url), call.attempt, body=_body(request), headers=headers, call=call
        )
        shown = {name: value for name, value in response.headers.items() if name.lower() not in _NOT_SENT}
        return self._responses(response.status, headers=shown, content=response.body, request=request)


class Wires:
    """The connections of one destination, by host. Safe to use from several threads."""

    def __init__(self, settings: DestinationSettings) -> None:
        self._settings, self._endpoint = settings, Endpoint.of(settings)
        self._own = _origin(settings.url)
        self._lock = threading.Lock()
        self._wires: dict[str, Wire] = {}

    def ask(
        self,
        method: str,
        url: str,
        attempt: Attempt,
        *,
        call: Call,
        body: Body | None = None,
        headers: dict[str, str] | None = None,
        most: int = _MOST,
        usual: tuple[int, ...] = _USUAL,
    ) -> Response:
        """The response to a request: a 2xx, or one of the statuses that are `usual`. Raises `StoreFailed` for every other one."""
        origin, sent = _origin(url), dict(headers or {})
        is_own = origin == self._own
        if not is_own:
            self._check_other(origin)
            sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
        is_file = isinstance(body, Streamed)
        parts = urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        # The address of an upload or a download may be signed.
        secrets = call.secrets if is_own else (*call.secrets, target)
        response = self._wire(origin).exchange(
            Request(method, target, sent, body or Bytes(b""), most, usual),
            attempt if is_file else attempt.silent(),
            secrets=secrets,
        )
        if isinstance(response, Outcome):
            raise StoreFailed(response)
        host = urlsplit(origin).hostname or origin
        if 200 <= response.status < 300:
            if _is_strange(response, parts.path, is_own=is_own):
                raise StoreFailed(foreign(response, host=host, secrets=secrets))
            return response
        is_api = is_own and not is_page(response)
        if response.status in usual and (is_api or response.status < 400):
            return response
        of_entry = "/commit/" in parts.path or "/preupload/" in parts.path
        outcome = outcome_of(
            response, self._settings, host=host, is_own=is_own, of_entry=of_entry, secrets=secrets
        )
        raise StoreFailed(outcome)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        with self._lock:
            wires, self._wires = list(self._wires.values()), {}
        for each in wires:
            each.close()

    def _check_other(self, origin: str) -> None:
        """Another host gets the bytes of a file, by an address that the Hub has signed."""
        settings = self._settings
        if is_plain_remote(origin, settings.proxy) and not settings.insecure:
            shown = clean(origin, limit=80)
            what = f"the hub directs checkpoints to {shown} without encryption"
            raise StoreFailed(Blocked(what, Scope.DESTINATION))

    def _wire(self, origin: str) -> Wire:
        with self._lock:
            if origin not in self._wires:
                self._wires[origin] = Wire(self._endpoint.at(origin))
            return self._wires[origin]


def unexpected(host: str, what: str) -> RetryLater:
    """The outcome of a 2xx that lacks what every response of the Hub has."""
    return RetryLater(
        f"{host}: the response to {what} is not one of the Hub, {FOREIGN} (login page or wrong url?)"
    )


def _body(request: Any) -> Body:
    length = request.headers.get("Content-Length")
    try:
        return Bytes(request.content)
    except Exception:  # a stream: every version of the client has its own error for that
        if length is None:
            raise
        return Streamed(int(length), request.stream)


def _is_strange(response: Response, path: str, *, is_own: bool) -> bool:
    """Whether a 2xx cannot be one of the Hub: its API responds with JSON, a storage never with a page."""
    if not response.is_plain:
        return True
    if is_own and (path.startswith("/api/") or path.endswith("/info/lfs/objects/batch")):
        return response.json() is None
    return "/resolve/" not in path and bool(response.body) and is_page(response)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _class_of_responses(client: Any) -> Any:
    """The class of responses of the client's library: httpx, or its successor."""
    return import_module(type(client).__module__.partition(".")[0]).Response


def _silence() -> None:
    """Let the filter see every record of the library. Loggers are made when their modules are loaded."""
    _UNLOGGED.seen = len(logging.root.manager.loggerDict)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _LOGGERS:
            logger = logging.getLogger(name)
            if _UNLOGGED not in logger.filters:
                logger.addFilter(_UNLOGGED)
