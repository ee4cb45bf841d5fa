"""What a status or an error of a connection means: the outcome of the attempt."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import urllib3
from requests import exceptions

from hubqueue.destinations.wire.environment import CERTIFICATE, ENCRYPTION
from hubqueue.destinations.wire.foreign import foreign, is_foreign
from hubqueue.destinations.wire.framing import MalformedResponse
from hubqueue.destinations.wire.message import MAX_RESPONSE, Response, phrase_of
from hubqueue.destinations.wire.waits import asked_wait
from hubqueue.domain.outcome import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.domain.redact import clean

TROUBLE = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, UnicodeError)
"""What a connection raises."""


def outcome_of_status(
    response: Response,
    *,
    host: str,
    unknown: Scope = Scope.RUN,
    secrets: tuple[str, ...] = (),
    own: bool = False,
) -> Outcome | None:
    """The outcome of a status; None for 2xx, which the caller must prove by the body.

    `unknown` is the scope that 404, 405 and 410 hold: the run that the hub does not know, or the destination without such
    an endpoint. Unknown 4xx reject the entry, like 400. Only the hub itself may hold or reject (see `foreign.py`); `own`
    marks a response as the hub's although it has no JSON object.
    """
    status = response.status
    if 200 <= status < 300:
        return None
    reason = _reason(response, secrets)
    wait = asked_wait(response.headers, now=datetime.now(UTC))
    if status == 429:
        return RetryLater(reason, wait, Scope.DESTINATION)
    if 300 <= status < 400 and "Location" in response.headers:
        target = clean(_target(response, secrets), limit=80, secrets=secrets)
        return RetryLater(f"{status}: {host} redirects to {target}; not followed")
    temporary = status in (408, 409, 423, 425) or (status >= 500 and status != 511)
    if not temporary and (status < 400 or (is_foreign(response) and not own)):
        return foreign(response, host=host, wait=wait, secrets=secrets)
    if status in (401, 403):
        return Blocked(f"the key was refused: {reason}", Scope.DESTINATION)
    if status == 402:
        return Blocked(f"the account was refused: {reason}", Scope.DESTINATION)
    if status in (404, 405, 410):
        return Blocked(f"{host} does not know this model or address ({reason})", unknown)
    if temporary:
        # 502 to 504 mean that the hub is down; this very content may cause another 5xx.
        return RetryLater(reason, wait, suspect=status >= 500 and status not in (502, 503, 504))
    return Rejected(reason)


def outcome_of_error(error: BaseException, *, host: str, secrets: tuple[str, ...] = ()) -> Outcome:
    """The outcome of an error of `requests`, `urllib3`, `ssl` or the socket. Only this function knows them all."""
    chain = list(_chain(error))
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        verdict = next(each for each in chain if isinstance(each, ssl.SSLCertVerificationError))
        said = clean(getattr(verdict, "verify_message", "") or str(verdict), secrets=secrets)
        return Blocked(f"{host}: {CERTIFICATE}: {said}", Scope.DESTINATION)
    contradicted = any(isinstance(each, urllib3.exceptions.InvalidHeader) for each in chain)
    if isinstance(error, _WRONG_SETTING) and not contradicted:
        return Blocked(f"{host}: invalid address or header: {type(error).__name__}", Scope.DESTINATION)
    for each in chain:
        if isinstance(each, MalformedResponse):
            return RetryLater(f"{host}: {each}")
    for kinds, words in _WORDS:
        if any(isinstance(each, kinds) for each in chain):
            refused = next(
                filter(None, (_TUNNEL.search(str(each)) for each in chain if type(each) is OSError)), None
            )
            return RetryLater(f"{host}: {words}" + (f" ({phrase_of(int(refused[1]))})" if refused else ""))
    detail = clean(str(chain[-1]), limit=120, secrets=secrets)
    return RetryLater(f"{host}: {type(chain[-1]).__name__}: {detail}")


# Errors of the configuration, not of the network: a retry does not help.
_WRONG_SETTING = (
    exceptions.MissingSchema,
    exceptions.InvalidSchema,
    exceptions.InvalidURL,
    exceptions.InvalidHeader,
    exceptions.URLRequired,
    urllib3.exceptions.LocationValueError,
    urllib3.exceptions.URLSchemeUnknown,
)
_WORDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((urllib3.exceptions.NameResolutionError,), "its name cannot be resolved"),
    ((exceptions.ProxyError, urllib3.exceptions.ProxyError), "the connection through the proxy failed"),
    ((urllib3.exceptions.InvalidHeader,), "the response has contradictory lengths"),
    ((ConnectionRefusedError,), "connection refused"),
    ((exceptions.ConnectTimeout,), "no connection in time"),
    ((urllib3.exceptions.NewConnectionError,), "no connection"),
    (
        (exceptions.ReadTimeout, exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError),
        "no response in time",
    ),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError), "connection reset"),
    ((http.client.RemoteDisconnected,), "closed without a response"),
    ((http.client.IncompleteRead, urllib3.exceptions.IncompleteRead), "the response was cut off"),
    ((exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError), ENCRYPTION),
    ((http.client.HTTPException,), "the response is not HTTP, or was cut off"),
    ((exceptions.ChunkedEncodingError,), "the response was cut off"),
)


# The response of a proxy to CONNECT, as http.client words it.
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all its causes, outermost first."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [getattr(each, "reason", None), *each.args, each.__cause__, each.__context__]


def _target(response: Response, secrets: tuple[str, ...]) -> str:
    """The host that a redirect names. Keys are masked before the URL is split, so that no part of a key remains."""
    location = clean(response.headers.get("Location", ""), limit=MAX_RESPONSE, secrets=secrets)
    try:
        return urlsplit(location).hostname or "itself"
    except ValueError:
        return "an invalid address"


def _reason(response: Response, secrets: tuple[str, ...]) -> str:
    """The status and the server's message, in one safe line."""
    body = response.object() or {}
    message = next((body[name] for name in ("message", "error") if isinstance(body.get(name), str)), "")
    phrase = http.client.responses.get(response.status, "")
    return clean(f"{response.status} {phrase}" + (f": {message}" if message else ""), secrets=secrets)
