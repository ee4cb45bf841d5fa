"""A bucket passes the conformance tests of all destinations, on a real server behind a proxy that injects the faults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import unquote

import pytest
from s3_proxy import Fault as ProxyFault
from s3_proxy import S3Proxy, Seen
from seaweed import ACCESS_KEY, SECRET_KEY, Seaweed

from hubqueue.config.declaration import Key
from hubqueue.destinations.base import Kind, Reader
from hubqueue.destinations.layout.reader import LayoutReader
from hubqueue.destinations.layout.store import Objects
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.store import Bucket
from hubqueue.testing.conformance import BAD_MARK, WAIT, Conformance, Fault, Received

_ALWAYS = 1_000_000
_OPTIONS: Mapping[Fault, Mapping[str, Any]] = {
    Fault.SLOW_DOWN: {"before": (503, "SlowDown"), "headers": {"Retry-After": str(WAIT)}},
    Fault.ERROR: {"before": (500, "InternalError")},
    Fault.BROKEN_OFF: {"drop": True},
    Fault.LOST: {"cut": True},
    Fault.NONSENSE: {
        "before": (200, ""),
        "body": b"<html>please log in</html>",
        "headers": {"Content-Type": "text/html"},
    },
    Fault.KEY_REFUSED: {"before": (403, "InvalidAccessKeyId")},
    Fault.ENTRY_REFUSED: {"before": (400, "EntityTooLarge")},
    Fault.HANG: {"hold": True, "drop": True},
}


def kind_of(seen: Seen) -> Kind | None:
    """The kind of the entries in a request; None if several kinds make it."""
    below = unquote(seen.key).partition("/")[2].partition("/")[2]
    if below.startswith("metrics/"):
        return Kind.METRICS
    if below == "run.json":
        is_start = seen.what == "PutObject" and "If-None-Match" in seen.headers
        return Kind.REGISTRATION if is_start else Kind.COMPLETION if seen.what == "PutObject" else None
    return Kind.CKPT if below else None


class BucketService:
    """A bucket as the service of the conformance tests."""

    type = "s3"
    faults = frozenset(Fault)
    secrets: Mapping[str, str] = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    environ: Mapping[str, str] = {}

    def __init__(self, seaweed: Seaweed, proxy: S3Proxy, bucket: str) -> None:
        self._seaweed, self._proxy, self._bucket = seaweed, proxy, bucket

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {
            "bucket": self._bucket,
            "endpoint_url": self._proxy.url,
            "part_size": "5 MiB",
            "parts_at_once": 2,
        }

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        if fault is Fault.UNREACHABLE:
            self._proxy.is_down = True
            return
        left = [after]

        def matches(seen: Seen) -> bool:
            if kind not in (None, kind_of(seen)):
                return False
            if fault is Fault.ENTRY_REFUSED and BAD_MARK.encode() not in seen.body:
                return False
            left[0] -= 1
            return left[0] < 0

        self._proxy.faults.append(ProxyFault(matches, times=times or _ALWAYS, **_OPTIONS[fault]))

    def heal(self) -> None:
        self._proxy.is_down = False
        faults, self._proxy.faults = self._proxy.faults, []
        for each in faults:
            each.go_on.set()

    def received(self) -> Mapping[str, Received]:
        # Not by a client of boto3, which logs what it sends.
        settings = S3Settings("direct", bucket=self._bucket, endpoint_url=self._seaweed.url)
        bucket = Bucket(settings, lambda: (Key(ACCESS_KEY, {"secret_access_key": SECRET_KEY}),))
        with closing(LayoutReader(bucket)) as reader, bucket.reading() as objects:
            return {
                each.name: self._received(reader, objects, each.name, each.state) for each in reader.runs()
            }

    def _received(self, reader: Reader, objects: Objects, run: str, state: str) -> Received:
        arrived = [each for each in self._proxy.calls("PutObject") if f"{run}/metrics/" in unquote(each.key)]
        names = dict.fromkeys(unquote(each.key).removeprefix("hubqueue/") for each in arrived)
        lines = [json.loads(line) for name in names for line in (objects.read(name) or b"").splitlines()]
        uploads = [
            each.size
            for each in self._proxy.seen
            if "/checkpoints/" in each.key and each.what in ("PutObject", "UploadPart")
        ]
        return Received(
            metrics=[(_key_of(each), each["metrics"]) for each in lines],
            checkpoints=[
                {file.path: b"".join(reader.blocks(checkpoint, file)) for file in checkpoint.files}
                for checkpoint in reader.checkpoints(run)
            ],
            ends=[] if state == "running" else [state],
            upload_bytes=sum(uploads),
        )


def _key_of(line: Mapping[str, Any]) -> str:
    return f"step:{line['step']}" if line.get("step") is not None else str(line["epoch"])


@pytest.mark.slow
class TestBucket(Conformance):
    # A file of the upload has more than one part. boto3 is loaded while the memory is measured.
    resumes, upload = True, 48_000_000
    large, memory = 96 << 20, 60 << 20

    @pytest.fixture
    def service(self, seaweed: Seaweed, bucket: str) -> Iterator[BucketService]:
        with S3Proxy(seaweed.url) as proxy:
            yield BucketService(seaweed, proxy, bucket)
