"""The rules of a bucket: what a refusal means, how a file is cut into parts, which account a run has. No network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from hubqueue.config.credentials import Credentials
from hubqueue.config.reader import parse
from hubqueue.config.registry import declaration
from hubqueue.destinations.base import Blocked, Outcome, Rejected, RetryLater, Scope
from hubqueue.destinations.layout.store import Source
from hubqueue.destinations.s3 import chain
from hubqueue.destinations.s3.errors import outcome_of, refusal_of
from hubqueue.destinations.s3.marks import composite, hash_of
from hubqueue.destinations.s3.parts import MOST_PARTS, Begun, Part, PartBody, part_size_for, parts_of
from hubqueue.destinations.s3.settings import AWS, S3Settings
from hubqueue.destinations.wire.body import BodyChanged
from hubqueue.destinations.wire.message import Response
from hubqueue.domain.outcome import ADVICE
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.body import SnapshotBody

MIB = 1024 * 1024


def refused(
    status: int, code: str | None, headers: Mapping[str, str] | None = None, more: str = ""
) -> Outcome:
    body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>words</Message>{more}</Error>'.encode()
    refusal = refusal_of(Response(status, headers or {}, body if code else b""), head=code is None)
    assert refusal is not None
    return outcome_of(
        refusal, bucket="lab", host="storage.example.com", name="store", source="the access key"
    )


@pytest.mark.parametrize(
    ("status", "code", "words", "advice"),
    [
        (403, "InvalidAccessKeyId", "the key was refused", "hubqueue login store"),
        (403, "SignatureDoesNotMatch", "the key was refused", "hubqueue login store"),
        (400, "ExpiredToken", "the key has expired", "renew the credentials"),
        (403, "AccessDenied", "the access key may not do this in the bucket 'lab'", "docs/s3.md"),
        (404, "NoSuchBucket", "there is no bucket 'lab' at storage.example.com", "destinations.store.bucket"),
        (301, "PermanentRedirect", "in another region", "destinations.store.region"),
        (400, "AuthorizationHeaderMalformed", "in another region", "destinations.store.region"),
        (400, "InvalidStorageClass", "refuses the request", "destinations.store"),
        (501, "NotImplemented", "lacks a part of S3", "conditional writes"),
    ],
)
def test_what_a_person_must_repair_is_a_hold_with_advice(
    status: int, code: str, words: str, advice: str
) -> None:
    found = refused(status, code)

    assert isinstance(found, Blocked) and found.scope is Scope.DESTINATION
    reason, _, how = found.reason.partition(ADVICE)
    assert words in reason and advice in how and f"{status} " in reason


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (400, "Throttling")]
)
def test_a_request_for_fewer_requests_is_a_pace_of_the_destination(status: int, code: str) -> None:
    found = refused(status, code, {"Retry-After": "7"})

    assert isinstance(found, RetryLater)
    assert (found.scope, found.after) == (Scope.DESTINATION, timedelta(seconds=7))


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "InternalError"), (400, "RequestTimeout"), (400, "BadDigest"), (507, "StorageFull")],
)
def test_what_passes_is_tried_again(status: int, code: str) -> None:
    assert isinstance(refused(status, code), RetryLater)


def test_only_the_object_itself_is_rejected() -> None:
    assert isinstance(refused(400, "EntityTooLarge"), Rejected)


def test_a_page_of_a_proxy_holds_and_rejects_nothing() -> None:
    for status in (400, 403, 404, 413, 503):
        refusal = refusal_of(Response(status, {}, b"<html>no</html>"), head=False)
        assert refusal is not None and not refusal.is_own
        found = outcome_of(refusal, bucket="lab", host="h", name="store", source="the access key")
        assert isinstance(found, RetryLater), status


def test_an_error_in_a_200_is_an_error() -> None:
    found = refused(200, "InternalError")

    assert isinstance(found, RetryLater) and "InternalError" in found.reason
    assert refusal_of(Response(200, {}, b"<CompleteMultipartUploadResult/>"), head=False) is None


def test_the_region_of_the_bucket_is_in_the_advice() -> None:
    by_header = refused(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"})
    by_body = refused(400, "AuthorizationHeaderMalformed", more="<Region>eu-west-1</Region>")

    for found in (by_header, by_body):
        assert isinstance(found, Blocked)
        assert found.reason.endswith('set destinations.store.region = "eu-west-1"')


@pytest.mark.parametrize("minutes", [-34, 20])
def test_a_wrong_clock_is_named_with_its_difference(minutes: int) -> None:
    theirs = datetime.now(UTC) - timedelta(minutes=minutes)
    # The moment of the server has whole seconds.
    words = (
        rf"is 0:({abs(minutes)}:0\d|{abs(minutes) - 1}:5\d) {'ahead of' if minutes > 0 else 'behind'} that of"
    )

    by_body = refused(
        403, "RequestTimeTooSkewed", more=f"<ServerTime>{theirs:%Y-%m-%dT%H:%M:%SZ}</ServerTime>"
    )
    by_header = refused(403, "RequestTimeTooSkewed", {"Date": format_datetime(theirs)})

    for found in (by_body, by_header):
        assert isinstance(found, Blocked) and re.search(words, found.reason)


# Parts.


def source_of(path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    snapshot = Snapshot(path.name, len(content), 0, hashlib.sha256(content).hexdigest())
    return Source(len(content), snapshot.sha256 or "", lambda: SnapshotBody(path.open("rb"), snapshot))


@pytest.mark.parametrize("part_size", [MIB // 3, MIB, 3 * MIB + 17])
def test_parts_cover_the_file_and_have_its_hashes(tmp_path: Path, part_size: int) -> None:
    content = bytes(range(256)) * 12_000 + b"end"
    source = source_of(tmp_path / "snapshot", content)

    parts = list(parts_of(source, part_size, lambda: None))

    pieces = [content[each.start : each.start + each.size] for each in parts]
    assert b"".join(pieces) == content and [each.number for each in parts] == list(range(1, len(parts) + 1))
    assert [each.digest for each in parts] == [hashlib.sha256(each).digest() for each in pieces]
    assert [b"".join(map(bytes, PartBody(source, each))) for each in parts] == pieces


def test_a_part_that_changed_since_it_was_hashed_is_never_sent_whole(tmp_path: Path) -> None:
    source = source_of(tmp_path / "snapshot", b"0" * 100)
    part = Part(1, 0, 100, hashlib.sha256(b"1" * 100).digest())

    with pytest.raises(BodyChanged):
        list(PartBody(source, part))
    # The server compares: what it gets is what the snapshot has now.
    assert b"".join(map(bytes, PartBody(source, part, proves=False))) == b"0" * 100


@pytest.mark.parametrize("size", [1, 160 * 1000 * MIB, 5 * 1024 * 1024 * MIB])
def test_a_file_has_at_most_ten_thousand_parts(size: int) -> None:
    part_size = part_size_for(size, 16 * MIB)

    assert -(-size // part_size) <= MOST_PARTS
    assert part_size == 16 * MIB or part_size % MIB == 0


def test_what_the_outbox_keeps_is_only_for_the_same_file(tmp_path: Path) -> None:
    source = source_of(tmp_path / "snapshot", b"0" * 100)
    begun = Begun("a/last.pt", source.sha256, "upload", 5 * MIB)
    begun.hashes += [Part(1, 0, 9, b"\xff" * 32).short, Part(2, 9, 9, b"\0" * 32).short]

    assert Begun.of(begun.text, "a/last.pt", source) == begun
    assert Begun.of(begun.text, "a/best.pt", source) is None
    assert Begun.of(begun.text, "a/last.pt", replace(source, sha256="0" * 64)) is None
    assert Begun.of("[]", "a/last.pt", source) is None and Begun.of(None, "a/last.pt", source) is None


def test_the_hash_of_an_object_is_the_servers_own_or_the_mark() -> None:
    mark = {"Metadata": {"Hubqueue-SHA256": "ab" * 32}}
    of_parts, whole = composite([b"1" * 32, b"2" * 32]), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

    assert hash_of({**mark, "ChecksumSHA256": f"{of_parts}-2"}) == "ab" * 32
    assert hash_of({**mark, "ChecksumSHA256": of_parts, "ETag": '"1234-2"'}) == "ab" * 32
    assert hash_of({**mark, "ChecksumSHA256": of_parts, "ChecksumType": "COMPOSITE"}) == "ab" * 32
    assert hash_of({**mark, "ChecksumSHA256": whole, "ETag": '"1234"'}) == "00" * 32
    assert hash_of({"Metadata": {}}) is None


# The address and the account.


def test_the_address_of_a_run_is_its_server_its_bucket_and_its_prefix() -> None:
    assert S3Settings("lab", bucket="b").url == f"{AWS}/b/hubqueue"
    assert (
        S3Settings("lab", bucket="b", prefix="/a/b/", endpoint_url="http://[::1]:9").url
        == "http://[::1]:9/b/a/b"
    )


def account(environ: Mapping[str, str], tmp_path: Path) -> str:
    (key,) = Credentials(tmp_path / "none.toml", environ).keys(
        S3Settings("lab", bucket="b", endpoint_url="http://h")
    )
    return str(key)


PAIR = {"AWS_ACCESS_KEY_ID": "AKIA0000000000000001", "AWS_SECRET_ACCESS_KEY": "s" * 40}


def test_the_account_is_the_id_of_a_long_term_key_else_the_profile(tmp_path: Path) -> None:
    own = {"HUBQUEUE_KEY_LAB": "AKIA0000000000000002", "HUBQUEUE_SECRET_ACCESS_KEY_LAB": "t" * 40}
    temporary = {**PAIR, "AWS_SESSION_TOKEN": "first"}

    assert account({**PAIR, **own}, tmp_path) == "AKIA0000000000000002"
    assert account(PAIR, tmp_path) == "AKIA0000000000000001"
    by_profile = account({}, tmp_path)
    assert by_profile == account({"AWS_PROFILE": "default"}, tmp_path)
    # A token that was renewed, or a login in its place, is the same account.
    assert by_profile == account(temporary, tmp_path)
    assert by_profile == account({**temporary, "AWS_ACCESS_KEY_ID": "ASIA0000000000000009"}, tmp_path)
    assert by_profile != account({"AWS_PROFILE": "lab"}, tmp_path)


def test_the_name_of_a_profile_is_not_masked_in_texts(tmp_path: Path) -> None:
    from hubqueue.domain.redact import clean

    account({"AWS_PROFILE": "production-training"}, tmp_path)

    assert clean("the run production-training") == "the run production-training"


def test_half_a_key_is_not_completed_by_the_chain(tmp_path: Path) -> None:
    half = {"HUBQUEUE_KEY_LAB": "AKIA0000000000000002"}

    found = Credentials(tmp_path / "none.toml", half).keys(S3Settings("lab", bucket="b"))

    assert found == ()


def test_only_the_chain_is_asked_for_credentials(tmp_path: Path) -> None:
    (by_chain,) = Credentials(tmp_path / "none.toml", {}).keys(S3Settings("lab", bucket="b"))
    (by_pair,) = Credentials(tmp_path / "none.toml", PAIR).keys(S3Settings("lab", bucket="b"))

    assert chain.is_chain(by_chain) and not chain.is_chain(by_pair)


def test_a_bucket_must_be_named_and_plain_http_leaves_no_machine() -> None:
    with pytest.raises(ValueError, match=r"destinations\.lab\.bucket must be set"):
        parse('[destinations.lab]\ntype = "s3"\n', environ={}, source="config.toml")
    with pytest.raises(ValueError, match=r"destinations\.lab\.endpoint_url is plain http"):
        parse(
            '[destinations.lab]\ntype = "s3"\nbucket = "b"\nendpoint_url = "http://storage"\n',
            environ={},
            source="config.toml",
        )


@pytest.mark.parametrize(
    ("kept", "removes"), [({}, False), ({"keep_last": 3}, True), ({"keep_best": 1}, True)]
)
def test_verify_knows_when_older_checkpoints_are_removed(kept: dict[str, int], removes: bool) -> None:
    settings = S3Settings("lab", bucket="b", **kept)  # type: ignore[arg-type]

    assert declaration("s3").removes_older(settings) is removes
