"""Calls of the S3 API: boto3 signs and reads them, `wire` sends them.

Promises the deadlines, the proxy, the certificates and the stop of every other destination: boto3 opens no connection for
a request to the bucket. One call is one request: nothing is retried, and no redirect is followed, to another region
neither. Promises that no logger of botocore sees a request of this destination: its DEBUG lines contain session tokens.
The variables with addresses (`AWS_ENDPOINT_URL`…) are not read here: a run belongs to its address.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from hubqueue.config.declaration import Key
from hubqueue.config.registry import install_line
from hubqueue.destinations.base import Attempt, Blocked, RetryLater, Scope
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.destinations.s3 import chain
from hubqueue.destinations.s3.errors import NO_KEY, Refusal, outcome_of, refusal_of
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.wire.body import Body, Bytes
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.exchange import Wire
from hubqueue.destinations.wire.message import MAX_RESPONSE, Request, Response
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.outcome import ADVICE, FOREIGN, Outcome
from hubqueue.domain.redact import clean, remember

_DEFAULT_REGION = "us-east-1"
# A session token has a thousand characters or more; masking needs pieces of an ordinary length.
_PIECE = 64
# There is no such object, or there is one.
_USUAL = (404, 412)
# These belong to the connection, or to the retries of botocore.
_NOT_SENT = frozenset({"content-length", "expect", "user-agent", "amz-sdk-request", "amz-sdk-invocation-id"})


class Refused(Exception):
    """The bucket refused a call for a reason that the caller handles."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(slots=True)
class _Call:
    """The call that a thread is making."""

    attempt: Attempt
    body: Body | None
    most: int
    secrets: tuple[str, ...] = ()
    expected: Collection[str] = ()
    sent: bool = False


class _Current(threading.local):
    call: _Call | None = None


_CURRENT = _Current()


class _Unlogged(logging.Filter):
    """Drops what botocore logs about the calls of this destination, and nothing else."""

    seen = 0  # how many loggers there were

    def filter(self, _record: logging.LogRecord) -> bool:
        return _CURRENT.call is None


_UNLOGGED = _Unlogged()


class Calls:
    """The calls of one bucket. Safe to use from several threads."""

    def __init__(self, settings: S3Settings, keys: Callable[[], tuple[Key, ...]]) -> None:
        self._settings, self._keys = settings, keys
        self._endpoint = Endpoint.of(settings)
        self._lock = threading.Lock()
        self._made: tuple[Key, Any, Any] | None = None  # the key, the client, its credentials
        self._wires: dict[str, Wire] = {}

    def call(
        self,
        operation: str,
        attempt: Attempt,
        *,
        body: Body | None = None,
        expected: Collection[str] = (),
        most: int = MAX_RESPONSE,
        **parameters: Any,
    ) -> dict[str, Any]:
        """The parsed response to `operation`, named as a method of boto3's client (`put_object`).

        Raises `Refused` for a refusal whose code is `expected`, `StoreFailed` for every other failure. A response with
        more than `most` bytes is not accepted.
        """
        call = _Call(attempt, body, most, expected=expected)
        try:
            return self._call(operation, call, parameters)
        except StoreFailed as failed:
            if operation == "head_object" and isinstance(failed.outcome, Blocked):
                # A response to HEAD gives no reason.
                reason = _Call(attempt, None, MAX_RESPONSE)
                self._call("list_objects_v2", reason, {"Prefix": parameters["Key"], "MaxKeys": 1})
            raise

    def close(self) -> None:
        """Close the connections that are kept alive."""
        with self._lock:
            wires, self._wires = list(self._wires.values()), {}
        for each in wires:
            each.close()

    def _call(self, operation: str, call: _Call, parameters: Mapping[str, Any]) -> dict[str, Any]:
        with self._making(call):
            client, call.secrets = self._ready()
            made: dict[str, Any] = getattr(client, operation)(Bucket=self._settings.bucket, **parameters)
        return made

    @contextmanager
    def _making(self, call: _Call) -> Iterator[None]:
        """Run a call in this thread. Errors of boto3 become outcomes."""
        _CURRENT.call = call
        if len(logging.root.manager.loggerDict) != _UNLOGGED.seen:
            _silence()
        try:
            yield
        except (StoreFailed, Refused):
            raise
        except ImportError as error:
            what = f"the destination needs boto3, which is not installed ({error.name}){ADVICE}{install_line('s3')}"
            raise StoreFailed(Blocked(what, Scope.DESTINATION)) from error
        except Exception as error:
            raise StoreFailed(self._outcome(error, call)) from error
        finally:
            _CURRENT.call = None

    def _outcome(self, error: Exception, call: _Call) -> Outcome:
        """The outcome of an error of boto3. Raises every other error again."""
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        what = clean(f"{type(error).__name__}: {error}", secrets=call.secrets)
        of_boto3 = isinstance(error, exceptions.BotoCoreError | exceptions.ClientError)
        if call.sent and (of_boto3 or isinstance(error, ResponseParserError)):
            return RetryLater(f"{self._settings.bucket}: the response is not one of S3, {FOREIGN}: {what}")
        if call.sent or not (of_boto3 or isinstance(error, ValueError)) or isinstance(error, HubqueueError):
            raise error
        self._forget()
        if isinstance(error, _of_settings(exceptions)):
            advice = f"check destinations.{self._settings.name}"
            return Blocked(f"boto3 refuses the settings: {what}{ADVICE}{advice}", Scope.DESTINATION)
        if _passes(error, exceptions):
            return RetryLater(f"{self._settings.bucket}: {what}")
        reason = f"{NO_KEY}: boto3 cannot get it from {self._source()}: {what}{ADVICE}{self._advice}"
        return Blocked(reason, Scope.DESTINATION)

    # --- the client of boto3

    def _ready(self) -> tuple[Any, tuple[str, ...]]:
        """The client, and its secrets now. The credentials of a role change while it is used."""
        key = next(iter(self._keys()), None)
        if key is None:
            raise StoreFailed(Blocked(f"there is no key for {self._settings.name}", Scope.DESTINATION))
        with self._lock:
            if self._made is None or (self._made[0], self._made[0].others) != (key, key.others):
                self._made = (key, *self._make(key))
            _, client, credentials = self._made
        if credentials is None:
            self._forget()
            where = "variables, files, login, container, instance"
            what = (
                f"{NO_KEY}: boto3 finds no credentials for {self._source()} ({where}){ADVICE}{self._advice}"
            )
            raise StoreFailed(Blocked(what, Scope.DESTINATION))
        found = credentials.get_frozen_credentials()
        token = found.token or ""
        pieces = (token[at : at + _PIECE] for at in range(0, len(token), _PIECE))
        secrets = (found.access_key, found.secret_key, *pieces)
        remember(secrets)
        return client, secrets

    def _make(self, key: Key) -> tuple[Any, Any]:
        import boto3
        from botocore.config import Config

        settings = self._settings
        pair = {}
        if not chain.is_chain(key):
            pair = {"aws_access_key_id": str(key), "aws_secret_access_key": key.others[chain.SECRET]}
        session = boto3.Session(region_name=settings.region or None, **pair)
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url or None,
            region_name=session.region_name or _DEFAULT_REGION,
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                ignore_configured_endpoint_urls=True,
                parameter_validation=False,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                # The checksum of each body is in a header, which the signature covers.
                s3={
                    "payload_signing_enabled": False,
                    "addressing_style": "path" if settings.endpoint_url else "auto",
                },
            ),
        )
        client.meta.events.register_first("before-send.s3", self._send)
        _silence()
        return client, session.get_credentials()

    def _forget(self) -> None:
        """Make the client again for the next call: boto3 does not read a changed file again."""
        with self._lock:
            self._made = None

    @property
    def _advice(self) -> str:
        return f"hubqueue login {self._settings.name}, or aws configure"

    def _source(self) -> str:
        key = next(iter(self._keys()), None)
        return "nowhere" if key is None else chain.described(key)

    # --- the request

    def _send(self, request: Any, **_: Any) -> Any:
        """Called by botocore with the signed request; its result replaces the request that botocore would send."""
        from botocore.awsrequest import AWSResponse

        call = _CURRENT.call
        assert call is not None, "a request belongs to a call"
        if call.sent:
            raise StoreFailed(RetryLater(f"{self._settings.bucket}: boto3 wanted to repeat a request"))
        call.sent = True
        response = self._exchange(call, request)
        if isinstance(response, Outcome):
            raise StoreFailed(response)
        refusal = refusal_of(response, head=request.method == "HEAD")
        if refusal is None:
            return AWSResponse(request.url, response.status, dict(response.headers), _Raw(response.body))
        if refusal.code in call.expected:
            raise Refused(refusal)
        outcome = outcome_of(
            refusal,
            bucket=self._settings.bucket,
            host=self._endpoint_of(request.url).host,
            name=self._settings.name,
            source=self._source(),
            secrets=call.secrets,
        )
        if isinstance(outcome, Blocked):
            self._forget()  # a person may renew the credentials in a file
        raise StoreFailed(outcome)

    def _exchange(self, call: _Call, request: Any) -> Response | Outcome:
        parts = urlsplit(request.url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        headers = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
            if name.lower() not in _NOT_SENT
        }
        body = call.body if call.body is not None else Bytes(request.body or b"")
        return self._wire(request.url).exchange(
            Request(request.method, path or "/", headers, body, call.most, _USUAL),
            call.attempt,
            secrets=call.secrets,
        )

    def _endpoint_of(self, url: str) -> Endpoint:
        parts = urlsplit(url)
        return self._endpoint.at(f"{parts.scheme}://{parts.netloc}")

    def _wire(self, url: str) -> Wire:
        endpoint = self._endpoint_of(url)
        with self._lock:
            if endpoint.root not in self._wires:
                self._wires[endpoint.root] = Wire(endpoint)
            return self._wires[endpoint.root]


def unproven(settings: S3Settings, operation: str) -> RetryLater:
    """The outcome of a 2xx that lacks what every response to this call has."""
    what = f"{settings.bucket}: the response to {operation} proves nothing, {FOREIGN}"
    return RetryLater(f"{what} (login page or wrong endpoint_url?)")


class _Raw(BytesIO):
    """A body as botocore reads it."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def _of_settings(exceptions: Any) -> tuple[type[Exception], ...]:
    """Errors of the address or the region; a `ValueError` is one of an address whose host boto3 does not accept."""
    return (
        ValueError,
        exceptions.EndpointProviderError,
        exceptions.InvalidRegionError,
        exceptions.ParamValidationError,
        exceptions.UnknownEndpointError,
    )


def _passes(error: Exception, exceptions: Any) -> bool:
    """Whether an error of a service that provides credentials is a temporary one."""
    if isinstance(error, exceptions.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or "Throttl" in code
    passing = (
        exceptions.HTTPClientError,
        exceptions.CredentialRetrievalError,
        exceptions.MetadataRetrievalError,
    )
    return isinstance(error, passing)


def _silence() -> None:
    """Let the filter see every record of botocore and boto3. Loggers are made when their modules are loaded."""
    _UNLOGGED.seen = len(logging.root.manager.loggerDict)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "boto3"):
            logger = logging.getLogger(name)
            if _UNLOGGED not in logger.filters:
                logger.addFilter(_UNLOGGED)
