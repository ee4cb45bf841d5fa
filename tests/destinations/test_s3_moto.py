"""The objects of a bucket, on a second server: moto, which differs from the first one in what it states of checksums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto_server import MotoServer
from s3_proxy import S3Proxy
from s3_stage import KEY, NAME, PART, Notes, open_uploads, source_of, stored, three_parts, upload

from hubqueue.destinations.base import RetryLater, quiet
from hubqueue.destinations.layout.store import Stored
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.store import Bucket

pytestmark = pytest.mark.slow


@pytest.fixture
def client() -> Iterator[tuple[S3Proxy, Any]]:
    """A proxy before the server, and a client of boto3 that reaches the server directly."""
    pytest.importorskip("moto")
    import boto3

    with MotoServer() as server, S3Proxy(server.url) as proxy:
        client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
        client.create_bucket(Bucket="lab-of-moto")
        yield proxy, client


def test_another_server_keeps_the_same_objects(client: tuple[S3Proxy, Any], tmp_path: Path) -> None:
    proxy, direct = client
    settings = S3Settings(
        "lab", bucket="lab-of-moto", endpoint_url=proxy.url, part_size=PART, parts_at_once=1
    )
    bucket, content, notes = Bucket(settings, lambda: (KEY,)), three_parts(), Notes()
    source = source_of(tmp_path / "snapshot", content)
    bucket.check()

    proxy.fault("UploadPart", part=2, drop=True)
    assert isinstance(upload(bucket, source, notes), RetryLater)
    proxy.fault("CompleteMultipartUpload", cut=True)
    assert isinstance(upload(bucket, source, notes, notes.last), RetryLater)
    assert upload(bucket, source, notes, notes.last) is None

    assert stored(bucket) == content and open_uploads(direct, "lab-of-moto") == []
    assert sorted(each.part for each in proxy.calls("UploadPart") if each.status == 200) == [1, 2, 3]
    with bucket.sending({}, quiet()) as objects:
        assert objects.create("run/run.json", b"1") and not objects.create("run/run.json", b"2")
        assert objects.stat(NAME) == Stored(NAME, len(content), source.sha256)
        assert sorted(objects.children("")) == [NAME.partition("/")[0], "run"]
        direct.put_object(Bucket="lab-of-moto", Key="hubqueue/run/strange", Body=b"1")
        objects.discard("run")
        assert [each.name for each in objects.below("")] == [NAME]
