"""What a refusal of S3 means.

Promises that only S3 itself holds or rejects anything: a page of a proxy is tried again. Source of the codes: "Error
responses" in the API reference of Amazon S3; other servers use the same ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import unescape

from hubqueue.destinations.base import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.destinations.wire.foreign import foreign
from hubqueue.destinations.wire.message import Response, phrase_of
from hubqueue.destinations.wire.waits import asked_wait, clock_difference, http_date, iso_moment
from hubqueue.domain.outcome import ADVICE, CLOCK
from hubqueue.domain.redact import clean

NO_KEY = "the key is missing"
"""How the reason begins when there are no credentials. A reason about a key begins with "the key"."""

ABSENT = ("NoSuchKey", "404")
"""The codes of a refusal because there is no such object."""
EXISTS = ("PreconditionFailed", "412")
"""Because there is one, or another one than the condition names."""
NO_UPLOAD = ("NoSuchUpload",)
"""Because there is no such upload any more."""

_ERROR = re.compile(rb"\A\s*(?:<\?xml[^>]*\?>\s*)?<Error[\s>]")
_FIELD = re.compile(rb"<([A-Za-z0-9]+)>([^<]*)</\1>")
_REFUSED_KEYS = {
    "InvalidAccessKeyId",
    "InvalidToken",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "NotSignedUp",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_FORBIDDEN = {
    "AccessDenied",
    "AccessForbidden",
    "AccountProblem",
    "AllAccessDisabled",
    "Forbidden",
    "MethodNotAllowed",
    "UnauthorizedAccess",
}
_OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException",
    "IncorrectEndpoint",
    "PermanentRedirect",
}
_SLOW = {
    "BandwidthLimitExceeded",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
# The bytes were damaged or cut on their way, or another request is changing the same object.
_PASSING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InvalidDigest",
    "OperationAborted",
    "RequestTimeout",
    "TemporaryRedirect",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_FULL = {"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"}
# The object itself is refused, whenever it comes.
_OBJECT = {"EntityTooLarge", "KeyTooLongError", "MaxMessageLengthExceeded", "MetadataTooLarge"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that refuses a call. `fields` are those of its XML, by name. `is_own`: S3 itself has sent it."""

    response: Response
    fields: dict[str, str] = field(default_factory=dict)
    is_own: bool = True

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status

    @property
    def code(self) -> str:
        """The code of the error, such as `NoSuchKey`; the status as text if there is none, as after HEAD."""
        return self.fields.get("Code") or str(self.status)


def refusal_of(response: Response, *, head: bool) -> Refusal | None:
    """What a response refuses; None for one that does not. A copy or a completion may fail in a 200."""
    is_error = _ERROR.match(response.body) is not None
    if 200 <= response.status < 300 and not is_error:
        return None
    found = _FIELD.findall(response.body) if is_error else []
    fields = {name.decode(): unescape(value.decode("utf-8", "replace")) for name, value in found}
    # The response to HEAD has no body.
    is_own = "Code" in fields or (
        head and any(each.lower().startswith("x-amz-") for each in response.headers)
    )
    return Refusal(response, fields, is_own)


def is_slow(refusal: Refusal) -> bool:
    """Whether S3 asks for fewer requests."""
    return refusal.code in _SLOW or (refusal.status in (429, 503) and refusal.is_own)


def outcome_of(
    refusal: Refusal, *, bucket: str, host: str, name: str, source: str, secrets: tuple[str, ...] = ()
) -> Outcome:
    """The outcome of a refusal. `name` is the destination's, `source` says where its credentials come from."""
    status, code, what = refusal.status, refusal.code, _shown(refusal, secrets)
    wait = asked_wait(refusal.response.headers, now=datetime.now(UTC))
    if not refusal.is_own:
        if status == 429 or status >= 500:
            return RetryLater(f"{host}: {what}", wait, Scope.DESTINATION if status == 429 else Scope.LANE)
        return foreign(refusal.response, host=host, wait=wait, secrets=secrets)
    if is_slow(refusal):
        return RetryLater(f"{host} asks for fewer requests: {what}", wait, Scope.DESTINATION)
    if code in _OBJECT or status == 413:
        return Rejected(f"{host} refuses an object of this size or name: {what}")
    if code in _FULL or status == 507:
        return RetryLater(f"the bucket {bucket!r} is full: {what}", wait)
    held = _held(refusal, what, bucket=bucket, host=host, name=name, source=source)
    if held is not None:
        return held
    if code in _PASSING or status < 400 or status in (408, 409, 425) or (status >= 500 and status != 501):
        return RetryLater(f"{host}: {what}", wait)
    # A setting, or a server that lacks something: the next entry would meet the same.
    return Blocked(
        f"{host} refuses the request: {what}{ADVICE}check destinations.{name} and the manual of the server",
        Scope.DESTINATION,
    )


def _held(refusal: Refusal, what: str, *, bucket: str, host: str, name: str, source: str) -> Blocked | None:
    """The outcome of what a person must repair; None for another refusal."""
    status, code, everywhere = refusal.status, refusal.code, Scope.DESTINATION
    if code in _EXPIRED:
        how = "renew the credentials, and restart a worker that has them in variables"
        return Blocked(f"the key has expired ({source}): {what}{ADVICE}{how}", everywhere)
    if code in _REFUSED_KEYS or status == 401:
        how = f"correct the credentials, or hubqueue login {name}"
        return Blocked(f"the key was refused ({source}): {what}{ADVICE}{how}", everywhere)
    if code == "RequestTimeTooSkewed":
        how = "correct the clock of this machine"
        return Blocked(
            f"{CLOCK} {clock_difference(_servers_time(refusal), datetime.now(UTC))}: {what}{ADVICE}{how}",
            everywhere,
        )
    if code == "NoSuchBucket":
        how = f"create it, or correct destinations.{name}.bucket"
        return Blocked(f"there is no bucket {bucket!r} at {host}: {what}{ADVICE}{how}", everywhere)
    if code in _OTHER_REGION or status == 301:
        region = refusal.response.headers.get("x-amz-bucket-region") or refusal.fields.get("Region")
        how = f"set destinations.{name}.region" + (f' = "{clean(region, limit=40)}"' if region else "")
        return Blocked(f"the bucket {bucket!r} is in another region: {what}{ADVICE}{how}", everywhere)
    if code in _FORBIDDEN or status == 403:
        how = "give it the permissions of docs/s3.md"
        return Blocked(f"{source} may not do this in the bucket {bucket!r}: {what}{ADVICE}{how}", everywhere)
    if status == 501:
        how = "use a server with conditional writes"
        return Blocked(f"{host} lacks a part of S3 that hubqueue needs: {what}{ADVICE}{how}", everywhere)
    return None


def _shown(refusal: Refusal, secrets: tuple[str, ...]) -> str:
    """The status, the code and the message of the server, in one safe line."""
    code = "" if refusal.code == str(refusal.status) else f" {refusal.code}"
    message = refusal.fields.get("Message", "")
    return clean(
        f"{phrase_of(refusal.status)}{code}" + (f": {message}" if message else ""), limit=140, secrets=secrets
    )


def _servers_time(refusal: Refusal) -> datetime | None:
    stated = iso_moment(refusal.fields.get("ServerTime", ""))
    return stated or http_date(refusal.response.headers.get("Date", ""))
