"""What a refusal of S3 means.

Promises that only S3 itself holds or rejects anything: a page of a proxy is tried again. Source of the codes: "Error
responses" in the API reference of Amazon S3; other servers use the same ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from html import unescape

from hubqueue.destinations.base import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.destinations.wire.foreign import foreign
from hubqueue.destinations.wire.message import Response, phrase_of
from hubqueue.destinations.wire.waits import asked_wait
from hubqueue.domain.outcome import ADVICE
from hubqueue.domain.redact import clean

NO_KEY = "the key is missing"
"""How the reason begins when there are no credentials. A reason about a key begins with "the key"."""

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
    status, code, headers = refusal.status, refusal.code, refusal.response.headers
    wait = asked_wait(headers, now=datetime.now(UTC))
    said = clean(refusal.fields.get("Message", ""), limit=80, secrets=secrets)
    what = phrase_of(status) + (f" {code}" if code != str(status) else "") + (f": {said}" if said else "")
    if not refusal.is_own:
        if status == 429 or status >= 500:
            scope = Scope.DESTINATION if status == 429 else Scope.LANE
            return RetryLater(f"{host}: {phrase_of(status)}", wait, scope)
        return foreign(refusal.response, host=host, wait=wait, secrets=secrets)
    if is_slow(refusal):
        return RetryLater(f"{host} asks for fewer requests ({what})", wait, Scope.DESTINATION)
    if code in _OBJECT or status == 413:
        return Rejected(f"{host}: {what}")
    if code in _FULL or status == 507:
        return RetryLater(f"the bucket {bucket!r} is full ({what})", wait)
    held = _held(refusal, bucket=bucket, host=host, name=name, source=source)
    if held is not None:
        reason, advice = held
        return Blocked(f"{reason} ({what}){ADVICE}{advice}", Scope.DESTINATION)
    if code in _PASSING or status < 400 or status in (408, 409, 425) or (status >= 500 and status != 501):
        return RetryLater(f"{host}: {what}", wait)
    # A setting, or a server that lacks something: the next entry would meet the same.
    advice = f"check destinations.{name} and the documentation of the server"
    return Blocked(f"{host} refuses the request ({what}){ADVICE}{advice}", Scope.DESTINATION)


def _held(refusal: Refusal, *, bucket: str, host: str, name: str, source: str) -> tuple[str, str] | None:
    """What a person must repair, and how; None for another refusal."""
    status, code = refusal.status, refusal.code
    if code in _EXPIRED:
        return (
            f"the key has expired: {source}",
            "renew the credentials, and restart a worker that has them in variables",
        )
    if code in _REFUSED_KEYS or status == 401:
        return f"the key was refused: {source}", f"correct the credentials, or hubqueue login {name}"
    if code == "RequestTimeTooSkewed":
        return _skew(refusal), "correct the clock of this machine"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r} at {host}", f"create it, or correct destinations.{name}.bucket"
    if code in _OTHER_REGION or status == 301:
        region = refusal.response.headers.get("x-amz-bucket-region") or refusal.fields.get("Region")
        if region:
            shown = clean(region, limit=40)
            return (
                f"the bucket {bucket!r} is in another region",
                f'set destinations.{name}.region = "{shown}"',
            )
        return f"the bucket {bucket!r} is in another region", f"set destinations.{name}.region"
    if code in _FORBIDDEN or status == 403:
        advice = "give it the permissions of docs/s3.md for the bucket and the prefix"
        return f"{source} may not do this in the bucket {bucket!r}", advice
    if code == "NotImplemented" or status == 501:
        return f"{host} lacks a part of S3 that hubqueue needs", "use a server with conditional writes"
    return None


def _skew(refusal: Refusal) -> str:
    """How far the clock of this machine is from the server's."""
    theirs = _moment(refusal.fields.get("ServerTime", "")) or _http_date(
        refusal.response.headers.get("Date", "")
    )
    if theirs is None:
        return "the clock of this machine differs from the server's"
    ahead = datetime.now(UTC) - theirs
    minutes = round(abs(ahead) / timedelta(minutes=1))
    return f"the clock of this machine is {minutes} min {'ahead' if ahead > timedelta(0) else 'behind'}"


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
