"""The objects of a bucket, on a real server: stored whole or not at all, continued by another attempt, never another's."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import S3Proxy
from s3_stage import KEY, NAME, PART, Notes, open_uploads, source_of, stored, three_parts, upload
from seaweed import ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY, Seaweed
from stage import wait_until

from hubqueue.config.declaration import Key
from hubqueue.destinations.base import Aborted, Blocked, Outcome, RetryLater, Scope, quiet
from hubqueue.destinations.layout.store import Source, Stored, StoreFailed
from hubqueue.destinations.s3.parts import SHORT
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.store import Bucket
from hubqueue.domain.errors import SnapshotAltered
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.body import SnapshotBody

pytestmark = pytest.mark.slow

Make = Callable[..., Bucket]


@pytest.fixture
def make(proxy: S3Proxy, bucket: str) -> Make:
    def made(key: Key = KEY, **settings: Any) -> Bucket:
        usual = {"bucket": bucket, "endpoint_url": proxy.url, "part_size": PART}
        return Bucket(S3Settings("lab", **{**usual, **settings}), lambda: (key,))

    return made


@pytest.fixture
def content() -> bytes:
    return three_parts()


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> Source:
    return source_of(tmp_path / "snapshot", content)


def test_small_objects_are_created_once_and_replaced(make: Make) -> None:
    with make().sending({}, quiet()) as objects:
        assert objects.read("run/run.json") is None

        assert objects.create("run/run.json", b"{1}")
        assert not objects.create("run/run.json", b"{2}")
        assert objects.read("run/run.json") == b"{1}"

        objects.replace("run/run.json", b"{3}")
        objects.delete("run/nothing.json")
        assert objects.read("run/run.json") == b"{3}"


def test_a_store_is_listed_and_discarded(make: Make, seaweed: Seaweed, bucket: str) -> None:
    with make(prefix="").sending({}, quiet()) as objects:
        names = [
            f"run/checkpoints/epoch-{epoch:04d}/a b/é{number}.bin" for epoch in (1, 2) for number in (1, 2)
        ]
        for name in names:
            objects.create(name, b"1")
        seaweed.client.create_multipart_upload(Bucket=bucket, Key="run/checkpoints/epoch-0001/c.bin")

        assert sorted(each.name for each in objects.below("run")) == names
        assert objects.children("") == ["run"]
        assert sorted(objects.children("run/checkpoints")) == ["epoch-0001", "epoch-0002"]

        objects.discard("run/checkpoints/epoch-0001")
        assert sorted(each.name for each in objects.below("run")) == names[2:]
    assert open_uploads(seaweed.client, bucket) == []


def test_a_checkpoint_in_parts_arrives_whole(
    make: Make, source: Source, content: bytes, seaweed: Seaweed, bucket: str, proxy: S3Proxy
) -> None:
    notes = Notes()

    assert upload(make(storage_class="STANDARD_IA"), source, notes) is None

    assert stored(make()) == content
    assert max(notes.sent) == len(content)
    assert [each.part for each in proxy.calls("UploadPart")].count(3) == 1
    found = seaweed.client.head_object(Bucket=bucket, Key=f"hubqueue/{NAME}")
    assert found["Metadata"] == {"hubqueue-sha256": source.sha256}
    with make().reading() as objects:
        assert objects.stat(NAME) == Stored(NAME, len(content), source.sha256)


def test_every_part_carries_its_hash(make: Make, source: Source, content: bytes, proxy: S3Proxy) -> None:
    upload(make(), source, Notes())

    parts = [content[start : start + PART] for start in range(0, len(content), PART)]
    sums = {each.part: each.headers["x-amz-checksum-sha256"] for each in proxy.calls("UploadPart")}
    assert sums == {
        number: base64.b64encode(hashlib.sha256(part).digest()).decode()
        for number, part in enumerate(parts, start=1)
    }


def test_no_more_parts_at_once_than_configured(
    make: Make, tmp_path: Path, content: bytes, proxy: S3Proxy
) -> None:
    proxy.latency = 0.05

    upload(make(parts_at_once=2), source_of(tmp_path / "six", content + content), Notes())

    assert proxy.most_at_once == 2


@pytest.mark.parametrize("part", [1, 2, 3])
def test_another_attempt_sends_only_what_is_missing(
    make: Make, source: Source, content: bytes, proxy: S3Proxy, part: int
) -> None:
    notes = Notes()
    proxy.fault("UploadPart", part=part, drop=True)
    first = upload(make(parts_at_once=1), source, notes)
    there = {each.part for each in proxy.calls("UploadPart") if each.status == 200}

    second = upload(make(), source, Notes(), notes.last)

    assert isinstance(first, RetryLater) and second is None
    assert stored(make()) == content
    finished = [each.part for each in proxy.calls("UploadPart") if each.status == 200]
    assert sorted(finished) == [1, 2, 3], "a part that the bucket had was sent again"
    assert there == set(range(1, part))
    assert len(proxy.calls("CreateMultipartUpload")) == 1


def test_a_part_whose_response_was_lost_is_not_sent_again(make: Make, source: Source, proxy: S3Proxy) -> None:
    notes = Notes()
    proxy.fault("UploadPart", part=2, cut=True)
    upload(make(parts_at_once=1), source, notes)

    assert upload(make(), source, Notes(), notes.last) is None

    assert sorted(each.part for each in proxy.calls("UploadPart")) == [1, 2, 3]


def test_a_completion_whose_response_was_lost_is_a_success(
    make: Make, source: Source, content: bytes, proxy: S3Proxy, seaweed: Seaweed, bucket: str
) -> None:
    notes = Notes()
    proxy.fault("CompleteMultipartUpload", cut=True)
    first = upload(make(), source, notes)

    second = upload(make(), source, Notes(), notes.last)

    assert isinstance(first, RetryLater) and second is None
    assert len(proxy.calls("UploadPart")) == 3 and len(proxy.calls("CompleteMultipartUpload")) == 1
    assert stored(make()) == content and open_uploads(seaweed.client, bucket) == []


def test_an_upload_whose_id_was_lost_is_aborted(
    make: Make, source: Source, proxy: S3Proxy, seaweed: Seaweed, bucket: str
) -> None:
    proxy.fault("CreateMultipartUpload", cut=True)
    assert isinstance(upload(make(), source, Notes()), RetryLater)
    assert len(open_uploads(seaweed.client, bucket)) == 1

    assert upload(make(), source, Notes()) is None

    assert open_uploads(seaweed.client, bucket) == []


def test_an_upload_that_the_bucket_has_forgotten_begins_again(
    make: Make, source: Source, content: bytes, proxy: S3Proxy, seaweed: Seaweed, bucket: str
) -> None:
    notes = Notes()
    proxy.fault("UploadPart", part=3, drop=True)
    upload(make(parts_at_once=1), source, notes)
    (left,) = open_uploads(seaweed.client, bucket)
    seaweed.client.abort_multipart_upload(Bucket=bucket, Key=left["Key"], UploadId=left["UploadId"])

    assert upload(make(), source, Notes(), notes.last) is None

    assert stored(make()) == content


def test_slow_down_is_a_pace(make: Make, source: Source, proxy: S3Proxy) -> None:
    proxy.fault("UploadPart", part=2, times=2, before=(503, "SlowDown"))
    proxy.fault("CompleteMultipartUpload", before=(429, "TooManyRequests"), headers={"Retry-After": "0"})

    assert upload(make(), source, Notes()) is None

    assert [each.part for each in proxy.calls("UploadPart")].count(2) == 3


def test_a_long_wait_that_the_server_asks_for_is_left_to_the_lane(
    make: Make, source: Source, proxy: S3Proxy
) -> None:
    proxy.fault("UploadPart", part=1, before=(503, "SlowDown"), headers={"Retry-After": "600"})

    found = upload(make(), source, Notes())

    assert isinstance(found, RetryLater) and found.scope is Scope.DESTINATION
    assert found.after is not None and found.after.total_seconds() == 600


def test_the_worker_stops_an_upload(make: Make, source: Source, proxy: S3Proxy) -> None:
    notes, stop = Notes(), threading.Event()
    notes.attempt = replace(notes.attempt, stop=stop)
    held = proxy.fault("UploadPart", part=2, hold=True)
    found: list[Outcome | None] = []
    thread = threading.Thread(target=lambda: found.append(upload(make(parts_at_once=1), source, notes)))
    thread.start()
    assert held.reached.wait(60)

    stop.set()
    thread.join(30)
    held.go_on.set()

    assert not thread.is_alive()
    assert isinstance(found[0], Aborted)


def test_an_altered_file_never_becomes_visible(
    make: Make, source: Source, tmp_path: Path, content: bytes, seaweed: Seaweed, bucket: str
) -> None:
    (tmp_path / "snapshot").write_bytes(content[:-1] + b"!")

    with pytest.raises(SnapshotAltered):
        upload(make(), source, Notes())

    assert stored(make()) is None and open_uploads(seaweed.client, bucket) == []


def test_a_file_that_was_altered_for_a_while_is_sent_anew(
    make: Make, source: Source, tmp_path: Path, content: bytes, proxy: S3Proxy
) -> None:
    notes = Notes()
    (tmp_path / "snapshot").write_bytes(b"?" + content[1:])
    proxy.fault("UploadPart", part=1, cut=True)
    assert isinstance(upload(make(parts_at_once=1), source, notes), RetryLater)
    (tmp_path / "snapshot").write_bytes(content)

    second = upload(make(), source, notes, notes.last)
    third = upload(make(), source, notes, notes.last)

    assert isinstance(second, RetryLater) and notes.progress.count(None) == 1 and third is None
    assert stored(make()) == content


def test_a_part_that_changed_since_it_was_hashed_is_refused_by_a_server_that_compares(
    make: Make, source: Source, tmp_path: Path, content: bytes, proxy: S3Proxy
) -> None:
    """After its first response the server is known to compare, so the parts are not hashed again while they are sent."""
    notes, found = Notes(), list[Outcome | None]()
    held = proxy.fault("UploadPart", part=1, hold_after=True)
    bucket = make(parts_at_once=1)
    thread = threading.Thread(target=lambda: found.append(upload(bucket, source, notes)))
    thread.start()
    assert held.reached.wait(60)
    wait_until(lambda: len(json.loads(notes.last or "{}")["hashes"]) == 2 * SHORT)

    with (tmp_path / "snapshot").open("r+b") as file:
        file.seek(PART + 1)
        file.write(b"?")
    held.go_on.set()
    thread.join(60)

    assert [each.status for each in proxy.calls("UploadPart")] == [200, 400]
    assert isinstance(found[0], RetryLater) and stored(bucket) is None
    (tmp_path / "snapshot").write_bytes(content)
    assert upload(bucket, source, notes, notes.last) is None and stored(bucket) == content


def test_damage_on_the_way_is_refused_by_the_server(make: Make, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "snapshot"
    whole = source_of(path, content[:1000])

    class Damaged(SnapshotBody):
        def __next__(self) -> memoryview:
            return memoryview(bytes(super().__next__())[:-1] + b"!")

    snapshot = Snapshot("snapshot", 1000, 0, whole.sha256)
    found = upload(make(), replace(whole, open=lambda: Damaged(path.open("rb"), snapshot)), Notes())

    assert isinstance(found, RetryLater) and "BadDigest" in found.reason
    assert stored(make()) is None


@pytest.mark.parametrize("size", [10, 11 * 1024 * 1024])
def test_an_object_of_another_program_is_never_overwritten(
    make: Make, tmp_path: Path, content: bytes, seaweed: Seaweed, bucket: str, size: int
) -> None:
    seaweed.client.put_object(Bucket=bucket, Key=f"hubqueue/{NAME}", Body=b"precious")

    found = upload(make(), source_of(tmp_path / "x", content[:size]), Notes())

    assert isinstance(found, Blocked) and found.scope is Scope.RUN and "not stored" in found.reason
    assert stored(make()) == b"precious" and open_uploads(seaweed.client, bucket) == []


@pytest.mark.parametrize("size", [10, 11 * 1024 * 1024])
def test_an_own_object_is_sent_once_and_replaced_by_another_content(
    make: Make, tmp_path: Path, content: bytes, proxy: S3Proxy, size: int
) -> None:
    first, second = content[:size], content[1 : size + 1]

    assert upload(make(), source_of(tmp_path / "1", first), Notes()) is None
    bodies = len(proxy.calls("UploadPart"))
    assert upload(make(), source_of(tmp_path / "1", first), Notes()) is None
    assert len(proxy.calls("UploadPart")) == bodies
    assert upload(make(), source_of(tmp_path / "2", second), Notes()) is None

    assert stored(make()) == second


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"<p>please<br>log in"], ids=["xml", "html"])
def test_what_does_not_look_like_a_bucket_proves_nothing(
    make: Make, source: Source, proxy: S3Proxy, page: bytes
) -> None:
    with make().sending({}, quiet()) as objects:
        calls: dict[str, Callable[[], object]] = {
            "PutObject": lambda: objects.create("run.json", b"{}"),
            "GetObject": lambda: objects.read("run.json"),
            "ListObjectsV2": lambda: objects.children(""),
            "HeadObject": lambda: objects.upload(NAME, source, quiet(), None),
            "CreateMultipartUpload": lambda: objects.upload(NAME, source, quiet(), None),
            "UploadPart": lambda: objects.upload(NAME, source, quiet(), None),
            "CompleteMultipartUpload": lambda: objects.upload(NAME, source, quiet(), None),
        }
        for what, call in calls.items():
            proxy.fault(what, before=(200, ""), body=page, headers={"Content-Type": "text/html"})
            with pytest.raises(StoreFailed) as failed:
                call()
            assert isinstance(failed.value.outcome, RetryLater), what


@pytest.mark.parametrize(
    ("settings", "key", "reason"),
    [
        ({"bucket": "no-such-bucket"}, KEY, "there is no bucket 'no-such-bucket'"),
        ({}, Key(READER_KEY, {"secret_access_key": READER_SECRET}), "may not do this"),
        ({}, Key(ACCESS_KEY, {"secret_access_key": READER_SECRET}), "the key was refused"),
        ({}, Key("AKIAOFNOBODY00000001", {"secret_access_key": READER_SECRET}), "the key was refused"),
    ],
)
def test_what_a_person_must_repair_holds_the_destination(
    make: Make, source: Source, settings: dict[str, Any], key: Key, reason: str
) -> None:
    with make(key, **settings).sending({}, quiet()) as objects:
        with pytest.raises(StoreFailed) as small:
            objects.create("run/run.json", b"{}")
        with pytest.raises(StoreFailed) as large:
            objects.upload(NAME, source, quiet(), None)

    for outcome in (small.value.outcome, large.value.outcome):
        assert isinstance(outcome, Blocked) and outcome.scope is Scope.DESTINATION
        assert reason in outcome.reason
        assert READER_SECRET not in outcome.reason and SECRET_KEY not in outcome.reason


def test_the_check_writes_nothing(make: Make, seaweed: Seaweed, bucket: str) -> None:
    make().check()

    assert seaweed.client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert open_uploads(seaweed.client, bucket) == []


def test_a_session_token_and_keys_never_reach_a_log(
    make: Make, source: Source, caplog: pytest.LogCaptureFixture, proxy: S3Proxy
) -> None:
    caplog.set_level(0)

    upload(make(), source, Notes())

    signature = proxy.calls("UploadPart")[0].headers["Authorization"].partition("Signature=")[2]
    for secret in (SECRET_KEY, ACCESS_KEY, signature):
        assert secret not in caplog.text
    assert "botocore.endpoint" not in caplog.text
