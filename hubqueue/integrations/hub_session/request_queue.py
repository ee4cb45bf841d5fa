"""`request_queue` of the original `HUBTrainingSession`: a request of the caller, retried, in this or another thread.

Kept for scripts that call it; hubqueue's own uploads use the outbox instead. Promises: at most one background thread
per session, no exception from a background request, and no attempt or pause that starts after `timeout`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from hubqueue.domain.redact import clean
from hubqueue.producer.survival import logger

_LOG = logger()
_RETRIED = frozenset({408, 502, 504})
_TOO_MANY = 429
# Beyond this many waiting requests, the oldest are dropped.
_LIMIT = 1000


class Response(Protocol):
    """The response of a request, as the package `requests` defines it."""

    status_code: int
    headers: Any

    def json(self) -> Any: ...

    def iter_content(self, chunk_size: int = 1) -> Iterable[bytes]: ...


Request = Callable[[], Response | None]


def should_retry(status_code: int) -> bool:
    """Whether a status is retried: 408, 502 and 504 are, as in the original."""
    return int(status_code) in _RETRIED


def failure_message(response: Response, retry: int, timeout: float) -> str:
    """One sentence about an unsuccessful response: the retries, the rate limit, or the server's message."""
    if should_retry(response.status_code):
        return f"Retrying {retry}x for {timeout:g}s." if retry else ""
    if int(response.status_code) == _TOO_MANY:
        headers = {str(name).lower(): str(value) for name, value in dict(response.headers or {}).items()}
        numbers = [headers.get(f"x-ratelimit-{name}", "?") for name in ("remaining", "limit")]
        wait = headers.get("retry-after")
        when = f"Please retry after {clean(wait, limit=40)}s." if wait else "Please retry later."
        return f"Rate limit reached ({clean('/'.join(numbers), limit=40)}). {when}"
    try:
        body = response.json()
    except Exception:  # an empty body, HTML, a truncated body: each library raises its own error
        return "Unable to read JSON."
    message = body.get("message") if isinstance(body, dict) else None
    return clean(message, limit=200) if isinstance(message, str) and message else "No JSON message."


def attempt(
    request: Request,
    *,
    retry: int,
    timeout: float,
    verbose: bool,
    drain: Callable[[Response], None],
    stop: threading.Event,
) -> Response | None:
    """Make up to `retry` + 1 attempts within `timeout` seconds, 1, 2, 4 … seconds apart; return the last response.

    None when the last attempt got no response. An exception of `request` or `drain` counts as no response.
    """
    deadline, response = time.monotonic() + timeout, None
    for tried in range(retry + 1):
        try:
            response = request()
            if response is not None:
                drain(response)
        except Exception as error:
            _LOG.warning("a request failed: %s", clean(f"{type(error).__name__}: {error}", limit=200))
            response = None
        if response is not None:
            if 200 <= response.status_code < 300:
                return response
            if tried == 0 and verbose:
                message = failure_message(response, retry, timeout)
                _LOG.warning("%s (%s)", message or "a request failed", response.status_code)
            if not should_retry(response.status_code):
                return response
        pause = 2.0**tried
        if tried == retry or time.monotonic() + pause > deadline or stop.wait(pause):
            break
    return response


class Background:
    """One daemon thread that makes calls in order, and ends when none are left."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._calls: deque[Callable[[], object]] = deque(maxlen=_LIMIT)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, call: Callable[[], object]) -> None:
        """Queue a call."""
        with self._lock:
            self._calls.append(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="hubqueue-requests", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._thread = None
                    return
                call = self._calls.popleft()
            try:
                call()
            except Exception:
                _LOG.exception("a request in the background failed")


def drained(response: Response) -> None:
    """Read the rest of a response and discard it."""
    for _ in response.iter_content(chunk_size=1024):
        pass
