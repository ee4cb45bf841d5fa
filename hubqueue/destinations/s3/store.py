"""The objects of a bucket below one prefix, as the layout needs them.

Promises that an object which hubqueue has not written is never overwritten: a new object is created only where there is
none, and an upload replaces only an object with our mark. Each body travels with its SHA-256, which the server compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hubqueue.config.declaration import Key
from hubqueue.destinations.base import Attempt, RetryLater, quiet
from hubqueue.destinations.layout.store import LARGEST, Source, Stored, StoreFailed
from hubqueue.destinations.s3.calls import Calls, Refused, unproven
from hubqueue.destinations.s3.errors import ABSENT, EXISTS, NO_UPLOAD
from hubqueue.destinations.s3.marks import hash_of, in_base64, marked
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.upload import Upload
from hubqueue.destinations.wire.body import BLOCK, Bytes
from hubqueue.domain.redact import clean

_JSON = "application/json"
# In bytes: what one request reads of an object, and the largest list of a thousand names.
_SECTION, _LIST = 4 * BLOCK, 4 * BLOCK


class Bucket:
    """A bucket. Safe to use from several threads."""

    def __init__(self, settings: S3Settings, keys: Callable[[], tuple[Key, ...]]) -> None:
        self._settings, self._calls = settings, Calls(settings, keys)

    @contextmanager
    def sending(self, remembered: Mapping[str, str | int], attempt: Attempt) -> Iterator[BucketObjects]:
        """Its objects, for one attempt. The row of the run names the bucket and the prefix, so there is nothing to compare."""
        yield BucketObjects(self._settings, self._calls, attempt)

    @contextmanager
    def reading(self) -> Iterator[BucketObjects]:
        """Its objects, for a reader."""
        yield BucketObjects(self._settings, self._calls, quiet())

    def check(self) -> None:
        """Begin an upload and abort it: that needs the permission to write, and leaves nothing."""
        key = self._settings.key(".hubqueue-check")
        attempt = quiet()
        begun = self._calls.call("create_multipart_upload", attempt, Key=key)
        if begun.get("Key") != key or not begun.get("UploadId"):
            raise StoreFailed(unproven(self._settings, "create_multipart_upload"))
        self._calls.call("abort_multipart_upload", attempt, Key=key, UploadId=begun["UploadId"])

    def close(self) -> None:
        self._calls.close()


class BucketObjects:
    """The objects, for one attempt or one reader."""

    remember: Mapping[str, str | int] = {}

    def __init__(self, settings: S3Settings, calls: Calls, attempt: Attempt) -> None:
        self._settings, self._calls = settings, calls
        # The body of a small object is no progress of the batch.
        self._attempt = attempt.silent()

    def create(self, name: str, content: bytes) -> bool:
        """Store a small object, unless one of that name exists; whether it was stored."""
        try:
            self._put(name, content, IfNoneMatch="*")
        except Refused:
            return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Store a small object, in place of one that exists."""
        self._put(name, content)

    def read(self, name: str) -> bytes | None:
        """A small object; None if there is none."""
        found = self._get("get_object", name, most=LARGEST)
        return None if found is None else bytes(found["Body"].read())

    def upload(self, name: str, source: Source, attempt: Attempt, progress: str | None) -> None:
        """Store a large object: in one request, or in parts that another attempt continues with."""
        Upload(self._settings, self._calls, name, source).send(attempt, progress)

    def stat(self, name: str, *, hashed: bool = False) -> Stored | None:
        """An object without its content; None if there is none."""
        found = self._get("head_object", name, ChecksumMode="ENABLED")
        if found is None:
            return None
        return Stored(name, int(found["ContentLength"]), hash_of(found))

    def below(self, folder: str) -> Iterator[Stored]:
        """All objects below a folder, at any depth."""
        for page in self._pages(folder):
            for each in page.get("Contents", ()):
                yield Stored(self._name_of(each["Key"]), int(each["Size"]))

    def children(self, folder: str) -> list[str]:
        """The names directly below a folder, each without the folder."""
        start = len(self._below(folder))
        found: dict[str, None] = {}
        for page in self._pages(folder, Delimiter="/"):
            keys = [each["Prefix"] for each in page.get("CommonPrefixes", ())]
            keys += [each["Key"] for each in page.get("Contents", ())]
            found |= dict.fromkeys(key[start:].rstrip("/") for key in keys)
        found.pop("", None)  # some programs store an empty object for a folder
        return list(found)

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens if there is none."""
        self._get("delete_object", name)

    def discard(self, folder: str) -> None:
        """Delete everything below a folder, unfinished uploads as well."""
        for each in self._uploads(folder):
            self._calls.call(
                "abort_multipart_upload",
                self._attempt,
                expected=NO_UPLOAD,
                Key=each["Key"],
                UploadId=each["UploadId"],
            )
        for found in list(self.below(folder)):
            self.delete(found.name)

    def blocks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from an offset, in blocks of at most 1 MiB."""
        first = self._get("head_object", name)
        if first is None:
            raise StoreFailed(RetryLater(f"{clean(name, limit=300)} is gone"))
        size, etag = int(first["ContentLength"]), first["ETag"]
        for at in range(start, size, _SECTION):
            end = min(at + _SECTION, size)
            found = self._get("get_object", name, most=_SECTION, Range=f"bytes={at}-{end - 1}", IfMatch=etag)
            content = b"" if found is None else found["Body"].read()
            if len(content) != end - at:
                raise StoreFailed(RetryLater(f"{clean(name, limit=300)} changed while it was read"))
            for offset in range(0, len(content), BLOCK):
                yield content[offset : offset + BLOCK]

    def url(self, folder: str) -> str | None:
        """The folder as the tools of S3 name it."""
        return f"s3://{self._settings.bucket}/{self._below(folder)}"

    def _put(self, name: str, content: bytes, **condition: Any) -> None:
        sha256 = hashlib.sha256(content)
        response = self._calls.call(
            "put_object",
            self._attempt,
            body=Bytes(content),
            expected=EXISTS,
            Key=self._settings.key(name),
            ContentType=_JSON,
            ChecksumSHA256=in_base64(sha256.digest()),
            Metadata=marked(sha256.hexdigest()),
            **condition,
        )
        if not response.get("ETag"):
            raise StoreFailed(unproven(self._settings, "put_object"))

    def _get(self, operation: str, name: str, **options: Any) -> dict[str, Any] | None:
        """The response about an object; None if there is none."""
        try:
            found = self._calls.call(
                operation, self._attempt, expected=ABSENT, Key=self._settings.key(name), **options
            )
        except Refused:
            return None
        if operation != "delete_object" and not found.get("ETag"):
            raise StoreFailed(unproven(self._settings, operation))
        return found

    def _pages(self, folder: str, **options: Any) -> Iterator[dict[str, Any]]:
        further: dict[str, Any] = {}
        while True:
            page = self._calls.call(
                "list_objects_v2",
                self._attempt,
                most=_LIST,
                Prefix=self._below(folder),
                **options,
                **further,
            )
            if "KeyCount" not in page and "Name" not in page:
                raise StoreFailed(unproven(self._settings, "list_objects_v2"))
            yield page
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            further = {"ContinuationToken": token}

    def _uploads(self, folder: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        further: dict[str, Any] = {}
        while True:
            page = self._calls.call(
                "list_multipart_uploads", self._attempt, most=_LIST, Prefix=self._below(folder), **further
            )
            found += page.get("Uploads", ())
            if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
                return found
            further = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page.get("NextUploadIdMarker", ""),
            }

    def _below(self, folder: str) -> str:
        return self._settings.key(f"{folder}/" if folder else "")

    def _name_of(self, key: str) -> str:
        prefix = self._settings.prefix
        return key[len(prefix) + 1 :] if prefix else key
