"""One request, one response, one outcome: bounded, streamed, never redirected.

Refuses what `requests` does automatically: follow redirects, read .netrc and proxy variables, keep cookies, decompress,
retry, accept the response to half a request. A `Response` has a complete head, and a complete body where a body proves
something; everything else is an outcome.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing

import requests

from hubqueue.__about__ import __version__
from hubqueue.destinations.base import Attempt
from hubqueue.destinations.wire.body import BLOCK, Body, BodyChanged
from hubqueue.destinations.wire.connections import CURRENT, SLOWEST_DRAIN, Watched, WatchedAdapter
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.environment import with_hint
from hubqueue.destinations.wire.message import MAX_RESPONSE, Request, Response
from hubqueue.destinations.wire.outcomes import TROUBLE, outcome_of_error, outcome_of_status
from hubqueue.destinations.wire.watchdog import WATCHDOG, Watch
from hubqueue.domain.outcome import FOREIGN, Aborted, Outcome, RetryLater, Scope

_POOL = 64
# In seconds.
_LONGEST_RESPONSE = 3600.0


class _TooLong(Exception):
    """The response does not end within the bytes that its request allows."""


class Wire:
    """The connections to one endpoint. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.host = endpoint.host
        # No session: it uses .netrc, proxy variables and cookies, and even when it does not follow a redirect it
        # reads and decompresses the whole body.
        self._adapter = WatchedAdapter(pool_connections=4, pool_maxsize=_POOL, max_retries=0)
        self._proxies = {"http": endpoint.proxy, "https": endpoint.proxy} if endpoint.proxy else {}
        self._verify = str(endpoint.ca_bundle) if endpoint.ca_bundle else True

    def exchange(
        self, request: Request, attempt: Attempt, *, secrets: tuple[str, ...] = ()
    ) -> Response | Outcome:
        """Send a request and read its response. A network error is returned as an outcome, not raised."""
        return with_hint(self._exchange(request, attempt, secrets), self._endpoint, os.environ)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._adapter.close()

    def open(self, request: Request, *, secrets: tuple[str, ...] = ()) -> Download | Response | Outcome:
        """A file that is read block by block (200, 206), for a reader; any other response as of `exchange`.

        No watch limits it: connecting and each block have the time limits of the endpoint.
        """
        try:
            window = self._endpoint.stall_window.total_seconds()
            response = self._send(request, window, drain=0.0)
            if response.status_code in (200, 206):
                return Download(response, self.host, secrets)
            return self._read(response, request)
        except _TooLong:
            return RetryLater(f"{self.host} responded with more than {request.most >> 10} KiB, {FOREIGN}")
        except TROUBLE as error:
            found = outcome_of_error(error, host=self.host, secrets=secrets)
            return with_hint(found, self._endpoint, os.environ)

    def judge(
        self,
        response: Response,
        *,
        unknown: Scope = Scope.RUN,
        secrets: tuple[str, ...] = (),
        own: bool = False,
    ) -> Outcome | None:
        """The outcome of a status, as `outcome_of_status`."""
        found = outcome_of_status(response, host=self.host, unknown=unknown, secrets=secrets, own=own)
        return with_hint(found, self._endpoint, os.environ)

    def _exchange(self, request: Request, attempt: Attempt, secrets: tuple[str, ...]) -> Response | Outcome:
        endpoint = self._endpoint
        response_timeout = _patient(endpoint.answer_timeout.total_seconds(), attempt.patience)
        watch = Watch(
            stop=attempt.stop,
            connect=endpoint.connect_timeout.total_seconds(),
            window=endpoint.stall_window.total_seconds(),
            rate=float(endpoint.stall_rate),
            response=response_timeout,
            size=len(request.body),
            on_bytes=attempt.on_bytes,
        )
        CURRENT.watch, CURRENT.on_start = watch, attempt.on_start
        WATCHDOG.add(watch)
        try:
            response = self._read(self._send(request, response_timeout), request)
            ended = self._ended(watch)
            if isinstance(ended, Aborted):
                return ended
            if ended:
                # A response without a length ends with the connection, and here the watch ended that.
                return ended if response.status < 300 else dataclasses.replace(response, cut=True)
            if 200 <= response.status < 300 and not watch.whole:
                # urllib3 ignores a broken pipe and reads what the peer sent before.
                return RetryLater(
                    f"{self.host} responded {response.status} before it received the whole request, "
                    "which proves no delivery"
                )
            return response
        except _TooLong:
            return RetryLater(f"{self.host} responded with more than {request.most >> 10} KiB, {FOREIGN}")
        except BodyChanged as error:
            return RetryLater(str(error))
        except TROUBLE as error:
            return self._ended(watch) or outcome_of_error(error, host=self.host, secrets=secrets)
        finally:
            WATCHDOG.remove(watch)
            CURRENT.watch = CURRENT.on_start = CURRENT.target = None

    def _ended(self, watch: Watch) -> Outcome | None:
        """The outcome if the watch ended the exchange."""
        if watch.stopped:
            return Aborted("the worker stops")
        return RetryLater(f"{self.host}: {watch.verdict}") if watch.verdict is not None else None

    def _send(
        self, request: Request, response_timeout: float, *, drain: float = SLOWEST_DRAIN
    ) -> requests.Response:
        headers = {
            "User-Agent": f"hubqueue/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **request.headers,
        }
        body = _Sized(request.body)
        prepared = requests.Request(
            request.method,
            self._endpoint.root + request.path,
            headers=headers,
            data=body if len(body) else b"",
        ).prepare()
        if not len(request.body) and request.method != "GET":
            prepared.headers["Content-Length"] = "0"
        with closing(body):
            return self._adapter.send(
                prepared,
                stream=True,
                verify=self._verify,
                proxies=self._proxies,
                # A second line of defence: the watchdog enforces the deadlines, also against a dripped response. The
                # kernel may still be sending the request for a long time.
                timeout=(self._endpoint.connect_timeout.total_seconds(), response_timeout + drain),
            )

    def _read(self, response: requests.Response, request: Request) -> Response:
        """The response. The body of a refusal is only its reason: what comes of it is enough."""
        body, status = bytearray(), response.status_code
        page = "html" in response.headers.get("Content-Type", "").lower()
        if isinstance(connection := response.raw.connection, Watched):
            connection.doomed = page or (status >= 300 and status not in (429, *request.usual))
        try:
            while block := response.raw.read(16 * 1024, decode_content=False):
                body += block
                if len(body) > (request.most if status < 300 else MAX_RESPONSE):
                    raise _TooLong
        except BaseException as error:
            response.raw.close()  # the next request must not read the rest of this response
            if status < 300 or not isinstance(error, (_TooLong, *TROUBLE)):
                raise
            return Response(status, response.headers, bytes(body[:MAX_RESPONSE]), cut=True)
        response.raw.release_conn()
        return Response(status, response.headers, bytes(body))


def _patient(seconds: float, patience: int) -> float:
    """The wait for a response: doubled for each whole request that had none in time, up to an hour."""
    return max(seconds, min(seconds * 2.0 ** min(patience, 32), _LONGEST_RESPONSE))


class _Sized:
    """A body for `requests`: with a length, it sends Content-Length instead of chunks."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._reading = ExitStack()

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return self._reading.enter_context(closing(iter(self._body)))

    def close(self) -> None:
        """Close the file being read: an error of urllib3 would keep it open until it is garbage-collected."""
        self._reading.close()


class Broken(Exception):
    """A file that is being read has ended early. `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(getattr(outcome, "reason", ""))
        self.outcome = outcome


class Download:
    """The response to a request for a file: its status and headers, and its bytes. Close it."""

    def __init__(self, response: requests.Response, host: str, secrets: tuple[str, ...]) -> None:
        self.status, self.headers = response.status_code, response.headers
        self._raw, self._host, self._secrets = response.raw, host, secrets

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of at most 1 MiB. Raises `Broken` if the response is not complete."""
        try:
            while block := self._raw.read(BLOCK, decode_content=False):
                yield block
        except TROUBLE as error:
            raise Broken(outcome_of_error(error, host=self._host, secrets=self._secrets)) from error

    def close(self) -> None:
        """Close its connection: what was not read would be the next response."""
        self._raw.close()
