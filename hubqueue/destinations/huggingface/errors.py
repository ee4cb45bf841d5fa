"""What a refusal of the Hub means.

Promises that only the Hub itself holds or rejects anything: a page of a proxy is tried again. The Hub's own responses are
JSON with `error`. Sources: "Rate limits" and "Storage limits" in the documentation of the Hub, and how huggingface_hub reads
the responses.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.destinations.wire.foreign import is_foreign
from hubqueue.destinations.wire.message import Response, phrase_of
from hubqueue.destinations.wire.outcomes import outcome_of_status
from hubqueue.destinations.wire.waits import asked_wait
from hubqueue.domain.outcome import ADVICE
from hubqueue.domain.redact import clean

_FULL = re.compile(r"storage|quota|payment|billing", re.IGNORECASE)
_NO_OBJECT = re.compile(r"\blfs\b", re.IGNORECASE)
_BUSY = re.compile(r"conflicting operation is in progress", re.IGNORECASE)
_WAIT = re.compile(r"\bin (?:about )?(\d{1,4}|an?) (second|minute|hour)s?", re.IGNORECASE)
# A signed address that is refused is useless; the next attempt gets a new one.
_NEW_ADDRESS = timedelta(seconds=1)


def outcome_of(
    response: Response,
    settings: DestinationSettings,
    *,
    host: str,
    is_own: bool = True,
    of_entry: bool = True,
    secrets: tuple[str, ...] = (),
) -> Outcome:
    """The outcome of a response that is no 2xx.

    `is_own`: it is of the Hub, not of a storage that the Hub has named. `of_entry`: the request has what an entry has, so it
    may be rejected.
    """
    status, name = response.status, settings.name
    if not is_own:
        return _of_storage(response, host)
    usual = outcome_of_status(response, host=host, unknown=Scope.RUN, secrets=secrets)
    assert usual is not None, "a 2xx is no refusal"
    what, repository = shown(response, secrets), getattr(settings, "repo_id", "")
    if status == 429 and isinstance(usual, RetryLater) and usual.after is None:
        return replace(usual, after=_stated_wait(what))
    if is_foreign(response) or status == 429:
        return usual
    if 300 <= status < 400:
        how = f"set destinations.{name}.repo_id, or url"
        return Blocked(f"the repository {repository} has moved: {what}{ADVICE}{how}", Scope.DESTINATION)
    if status == 401:
        how = f"hubqueue login {name}, or hf auth login"
        return Blocked(f"the key was refused: {what}{ADVICE}{how}", Scope.DESTINATION)
    if status in (402, 403, 507) and _FULL.search(what):
        return _full(what, settings)
    if status in (402, 403):
        how = f"hubqueue login {name} with a token that may write: {settings.url}/settings/tokens"
        return Blocked(f"the key may not write to {repository}: {what}{ADVICE}{how}", Scope.DESTINATION)
    if _NO_OBJECT.search(what) and status in (400, 404, 409, 422):
        return RetryLater(f"{host} does not have a file that was uploaded; it will be sent again: {what}")
    if status == 409 and _BUSY.search(what):
        return RetryLater(f"{host}: {what}")
    if isinstance(usual, Rejected) and not of_entry:
        # The next entry would meet the same.
        how = f"check destinations.{name}"
        return Blocked(f"{host} refuses the request: {what}{ADVICE}{how}", Scope.DESTINATION)
    return usual


def refused_upload(message: str, settings: DestinationSettings, host: str) -> Outcome:
    """The outcome where the Hub gives no address for an upload. `message` is what the library says of it."""
    what = clean(message.partition("\n")[2] or message, limit=160)
    if _FULL.search(what):
        return _full(what, settings)
    return RetryLater(f"{host} refuses an upload: {what}", suspect=True)


def absent(settings: DestinationSettings, host: str) -> Blocked:
    """The outcome where the repository of a run is not there, or may not be read."""
    repository = getattr(settings, "repo_id", "")
    how = f"create it again, or hubqueue login {settings.name} with a token that may read it"
    return Blocked(f"{host} has no repository {repository} for this key{ADVICE}{how}", Scope.RUN)


def shown(response: Response, secrets: tuple[str, ...] = ()) -> str:
    """The status and the message of the Hub, in one safe line."""
    found = (response.object() or {}).get("error")
    message = found if isinstance(found, str) else ""
    return clean(phrase_of(response.status) + (f": {message}" if message else ""), limit=300, secrets=secrets)


def _full(what: str, settings: DestinationSettings) -> Blocked:
    repository = getattr(settings, "repo_id", "")
    how = f"free space there, or extend it: {settings.url}/settings/billing"
    return Blocked(f"the storage of {repository} is full: {what}{ADVICE}{how}", Scope.DESTINATION)


def _stated_wait(what: str) -> timedelta | None:
    """The wait that the text of a 429 states: that about commits has no header."""
    found = _WAIT.search(what)
    if found is None:
        return None
    count = int(found[1]) if found[1].isdigit() else 1
    return timedelta(seconds=count * {"second": 1, "minute": 60, "hour": 3600}[found[2].lower()])


def _of_storage(response: Response, host: str) -> Outcome:
    """The outcome of a refusal of the storage. Its text is not shown: it may repeat the signed address."""
    status, wait = response.status, asked_wait(response.headers, now=datetime.now(UTC))
    if status == 413:
        return Rejected(f"413: {host} does not accept a file of this size")
    if status in (408, 429) or status >= 500:
        return RetryLater(f"{status}: {host} does not accept the file now", wait)
    return RetryLater(
        f"{status}: {host} refused the signed address; the next attempt asks for a new one",
        wait or _NEW_ADDRESS,
    )
