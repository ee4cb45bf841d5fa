"""What a refusal of the Hub means for an entry, its run and its destination."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from hubqueue.destinations.base import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.destinations.huggingface.errors import absent, outcome_of, refused_upload
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.destinations.wire.message import Response

SETTINGS = HuggingfaceSettings("hf", repo_id="me/runs")
COMMITS = (
    "You have exceeded the rate limit for repository commits (128 per hour). You can retry this action in {}."
)


def outcome(
    status: int, error: str = "no", *, of_entry: bool = True, headers: dict[str, str] | None = None
) -> Outcome:
    response = Response(status, headers or {}, json.dumps({"error": error}).encode())
    return outcome_of(response, SETTINGS, host="huggingface.co", of_entry=of_entry)


@pytest.mark.parametrize(
    ("status", "error", "start"),
    [
        (
            401,
            "Invalid credentials in Authorization header",
            "the key was refused: 401 Unauthorized: Invalid",
        ),
        (403, "Forbidden", "the key may not write to me/runs: 403 Forbidden"),
        (403, "Private repository storage limit reached", "the storage of me/runs is full: 403"),
        (402, "Payment required", "the storage of me/runs is full: 402"),
        (307, "Temporary Redirect", "the repository me/runs has moved: 307"),
    ],
)
def test_what_a_person_must_repair_holds_the_destination(status: int, error: str, start: str) -> None:
    found = outcome(status, error)

    assert isinstance(found, Blocked)
    assert found.scope is Scope.DESTINATION
    assert found.reason.startswith(start)
    assert "; to repair this: " in found.reason


@pytest.mark.parametrize("status", [400, 413, 422])
def test_only_a_request_with_an_entry_rejects_it(status: int) -> None:
    assert isinstance(outcome(status), Rejected)
    assert isinstance(outcome(status, of_entry=False), Blocked)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
def test_what_passes_is_tried_again(status: int) -> None:
    assert isinstance(outcome(status), RetryLater)


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (COMMITS.format("43 minutes"), timedelta(minutes=43)),
        (COMMITS.format("about 1 hour"), timedelta(hours=1)),
        (COMMITS.format("a minute"), timedelta(minutes=1)),
        ("too many", None),
    ],
)
def test_a_429_makes_all_lanes_wait_as_long_as_its_text_says(error: str, wait: timedelta | None) -> None:
    found = outcome(429, error)

    assert isinstance(found, RetryLater)
    assert (found.after, found.scope) == (wait, Scope.DESTINATION)


def test_the_header_of_a_429_counts_before_its_text() -> None:
    found = outcome(429, COMMITS.format("43 minutes"), headers={"RateLimit": '"api";r=0;t=55'})

    assert isinstance(found, RetryLater)
    assert found.after == timedelta(seconds=55)


def test_a_missing_upload_is_sent_again() -> None:
    found = outcome(422, "LFS pointer pointed to a file that does not exist")

    assert isinstance(found, RetryLater)
    assert found.reason.startswith(
        "huggingface.co does not have a file that was uploaded; it will be sent again: 422"
    )


def test_a_page_of_a_proxy_holds_and_rejects_nothing() -> None:
    for status in (400, 401, 403, 404, 413, 422):
        page = Response(status, {}, b"<html>no</html>")
        assert isinstance(outcome_of(page, SETTINGS, host="h"), RetryLater), status


def test_the_storage_shows_no_address() -> None:
    for status in (400, 403, 404, 429, 500):
        found = outcome_of(
            Response(status, {}, b"<Error>X-Amz-Signature=abc</Error>"), SETTINGS, host="s3", is_own=False
        )
        assert isinstance(found, RetryLater), status
        assert "abc" not in found.reason
    assert isinstance(outcome_of(Response(413, {}, b""), SETTINGS, host="s3", is_own=False), Rejected)


def test_a_refused_upload_is_a_full_storage_or_tried_again() -> None:
    full = "LFS batch API returned errors:\nEncountered error for file with OID 1: `storage quota exceeded`"

    assert isinstance(refused_upload(full, SETTINGS, "h"), Blocked)
    assert isinstance(refused_upload("LFS batch API returned errors:\nsomething", SETTINGS, "h"), RetryLater)


def test_a_missing_repository_holds_the_run() -> None:
    assert absent(SETTINGS, "h").scope is Scope.RUN
