"""Requests to a hub's own API: with a key, and a JSON object in the response."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Key
from hubqueue.destinations.wire.body import Body, Bytes
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.exchange import Download, Wire
from hubqueue.destinations.wire.foreign import is_foreign
from hubqueue.destinations.wire.message import MAX_RESPONSE, Request, Response
from hubqueue.domain.outcome import FOREIGN, Blocked, Outcome, RetryLater, Scope
from hubqueue.domain.redact import LEAST_KEY, clean, remember

_USABLE_KEY = re.compile(r"[!-~]+")
_NEXT_KEY = timedelta(seconds=1)
_K = TypeVar("_K", bound=str)


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """A complete response. `json` is its JSON object, None if it has none. The protocol decides what it proves."""

    json: dict[str, Any] | None
    http: Response
    key: str

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.http.status


class Api(Generic[_K]):
    """The API of one destination. Safe to use from several threads.

    `with_key` gives the headers that carry a key; None is for a destination without secrets. `keys` are those of `Open`:
    plain texts for a destination with one secret, else `Key`. With `optional`, requests without a key are sent as well
    if no key exists. `is_own` recognizes refusals of the hub that are no JSON objects.
    """

    def __init__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[_K, ...]],
        with_key: Callable[[_K], Mapping[str, str]] | None = None,
        *,
        optional: bool = False,
        is_own: Callable[[Response], bool] = lambda _response: False,
    ) -> None:
        self.keys, self._optional, self._is_own = keys, optional, is_own
        self._name, self._with_key = settings.name, with_key
        self._wire = Wire(Endpoint.of(settings))
        # Hashes of refused keys: after a 401 or 403 the next key is tried.
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def ask(
        self,
        method: str,
        path: str,
        body: Body,
        attempt: Attempt,
        *,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        unknown: Scope = Scope.RUN,
        judged: Collection[int] = (),
        signature: Callable[[_K], Mapping[str, str]] | None = None,
        most: int = MAX_RESPONSE,
    ) -> ApiResponse | Outcome:
        """The response to a request, or the outcome if there is none.

        `unknown` is the scope that a 404 holds. The caller judges the hub's own responses with a status in `judged`.
        `signature` gives the headers that a key makes of this very request. The response has at most `most` bytes.
        """
        key = self._key() if self._with_key is not None else None
        if isinstance(key, Outcome):
            return key
        sent = {**(headers or {}), **self._carrying(key)}
        secrets = _parts(key) if key else ()
        if idempotency_key is not None:
            sent["Idempotency-Key"] = idempotency_key
        if signature is not None and key:
            sent |= signature(key)
        response = self._wire.exchange(Request(method, path, sent, body, most), attempt, secrets=secrets)
        if not isinstance(response, Response):
            return response
        return self._judged(response, key, unknown, judged, is_headless=method == "HEAD")

    def download(
        self, path: str, *, headers: Mapping[str, str] | None = None, judged: Collection[int] = ()
    ) -> Download | ApiResponse | Outcome:
        """A file, for a reader (200, 206); the response with a status in `judged`, or the outcome."""
        key = self._key() if self._with_key is not None else None
        if isinstance(key, Outcome):
            return key
        request = Request("GET", path, {**(headers or {}), **self._carrying(key)}, Bytes(b""))
        response = self._wire.open(request, secrets=_parts(key) if key else ())
        if not isinstance(response, Response):
            return response
        return self._judged(response, key, Scope.RUN, judged)

    def _carrying(self, key: _K | None) -> Mapping[str, str]:
        return self._with_key(key) if self._with_key is not None and key else {}

    def _judged(
        self,
        response: Response,
        key: _K | None,
        unknown: Scope,
        judged: Collection[int],
        *,
        is_headless: bool = False,
    ) -> ApiResponse | Outcome:
        is_own = self._is_own(response)
        outcome = self._wire.judge(response, unknown=unknown, secrets=_parts(key) if key else (), own=is_own)
        # A page of a gateway says nothing of the hub's models and files. A response to HEAD has no body to recognize.
        is_for_caller = response.status in judged and (is_headless or is_own or not is_foreign(response))
        if outcome is None or is_for_caller:
            return ApiResponse(response.object(), response, key or "")
        if isinstance(outcome, Blocked) and response.status in (401, 403):
            if key:
                return self._refuse(key, outcome)
            if self._optional and response.status == 401:
                what = f"the key for {self._name} is missing: {self._wire.host} asks for one"
                return Blocked(what, outcome.scope)
        return outcome

    def unexpected(self, response: ApiResponse) -> RetryLater:
        """The outcome of a 2xx that does not prove a delivery, with the beginning of its body."""
        start = clean(
            response.http.body.decode("utf-8", "replace"),
            limit=60,
            secrets=(response.key,) if response.key else (),
        )
        shown = f": {start}" if start else ""
        what = f"{self._wire.host} responded {response.status}, but {FOREIGN}"
        return RetryLater(f"{what} (login page or wrong URL?){shown}")

    def missing(self, what: str) -> RetryLater:
        """The outcome of a response without a required field. Its text is not shown: it may contain a signed URL."""
        return RetryLater(f"the hub's response has no {what}; will retry")

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._wire.close()

    def _key(self) -> _K | Outcome | None:
        candidates = self.keys()
        for each in candidates:
            remember(_parts(each))
        if not candidates and self._optional:
            return None
        if not candidates:
            return Blocked(f"there is no key for {self._name}", Scope.DESTINATION)
        with self._lock:
            fresh = [key for key in candidates if _digest(key) not in self._refused]
        key = (fresh or list(candidates))[0]
        if not _USABLE_KEY.fullmatch(key):
            return Blocked(f"the key for {self._name} has invalid characters", Scope.DESTINATION)
        if len(key) < LEAST_KEY:
            what = f"the key for {self._name} has fewer than {LEAST_KEY} characters"
            return Blocked(f"{what}, so it could not be masked", Scope.DESTINATION)
        return key

    def _refuse(self, key: _K, refused: Blocked) -> Outcome:
        """The outcome of a refused key: the next one is tried; without another one the destination is held."""
        with self._lock:
            self._refused.add(_digest(key))
            if any(_digest(each) not in self._refused for each in self.keys()):
                return RetryLater(f"{refused.reason}; the next key is tried", _NEXT_KEY)
            self._refused.clear()
        return refused


def _parts(key: str) -> tuple[str, ...]:
    return key.parts if isinstance(key, Key) else (key,)


def _digest(key: str) -> str:
    return hashlib.sha256("\0".join(_parts(key)).encode("utf-8", "surrogatepass")).hexdigest()
