"""An upload of a file: in one request, or in parts.

Promises that another attempt, process or machine continues with the same upload, and sends no part again that the bucket
has: the outbox keeps the id of the upload and the hash of each part before the part is sent, and the bucket lists the parts
that it has. Promises that an object becomes visible only if the file is what was enqueued, and that an object which
hubqueue has not written is never overwritten. Needs a MiB for each of the parallel parts, and a few more.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from hubqueue.destinations.base import Attempt, Blocked, Outcome, RetryLater, Scope
from hubqueue.destinations.layout.store import Source, StoreFailed, obey
from hubqueue.destinations.s3.calls import Calls, Refused, unproven
from hubqueue.destinations.s3.errors import ABSENT, EXISTS, NO_UPLOAD
from hubqueue.destinations.s3.marks import composite, hash_of, in_base64, mark_of, marked
from hubqueue.destinations.s3.parts import Begun, Part, PartBody, part_size_for, parts_of
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.threads import PartThreads
from hubqueue.destinations.wire.body import Body, File
from hubqueue.domain.errors import SnapshotAltered
from hubqueue.domain.outcome import ADVICE
from hubqueue.domain.redact import clean

_TYPE = "application/octet-stream"
# In bytes: a list of a thousand parts.
_LIST = 1024 * 1024
# In seconds: how long a part waits when the server asks for fewer requests. A longer wait is left to the lane.
_FIRST_WAIT, _LONGEST_WAIT, _MOST_WAITS = 0.5, 60.0, 7


@dataclass(frozen=True, slots=True)
class _Target:
    """What is in the bucket under the name. `condition` is what a request must say to replace just that."""

    is_done: bool
    condition: dict[str, Any]


class Upload:
    """The upload of one object, for one attempt."""

    def __init__(self, settings: S3Settings, calls: Calls, name: str, source: Source) -> None:
        self._settings, self._calls, self._name, self._source = settings, calls, name, source
        self._key = settings.key(name)
        self._is_compared = False  # whether the server has stated the hash of a part: it refuses other bytes

    def send(self, attempt: Attempt, progress: str | None) -> None:
        """Send it, or what is missing of it. Raises `StoreFailed`."""
        if self._source.size <= self._settings.part_size:
            self._whole(attempt)
        else:
            self._in_parts(attempt, progress)

    # --- in one request

    def _whole(self, attempt: Attempt) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"}
        for _ in range(2):
            try:
                return self._put(attempt, condition)
            except Refused:
                found = self._target(attempt)
                if found.is_done:
                    attempt.on_bytes(self._source.size)
                    return None
                condition = found.condition
        raise StoreFailed(RetryLater(f"{self._shown} is being written by another program"))

    def _put(self, attempt: Attempt, condition: dict[str, Any]) -> None:
        digest = bytes.fromhex(self._source.sha256)
        response = self._paced(
            "put_object",
            attempt,
            File(self._source.size, self._source.open),
            expected=EXISTS,
            ContentType=_TYPE,
            ChecksumSHA256=in_base64(digest),
            Metadata=marked(self._source.sha256),
            **self._storage_class,
            **condition,
        )
        if not _proves(response, in_base64(digest)):
            raise StoreFailed(unproven(self._settings, "put_object"))

    # --- in parts

    def _in_parts(self, attempt: Attempt, progress: str | None) -> None:
        target = self._target(attempt)
        if target.is_done:
            attempt.on_bytes(self._source.size)
            return
        begun = Begun.of(progress, self._name, self._source)
        there = None if begun is None else self._listed(begun, attempt)
        if begun is None or there is None:
            begun, there = self._begin(attempt), {}
        try:
            finished = self._send_parts(begun, there, attempt)
        except SnapshotAltered:
            self._abort(begun, attempt)  # the file is not what was enqueued, so no part of it is of use
            raise
        self._complete(begun, finished, target, attempt)

    def _begin(self, attempt: Attempt) -> Begun:
        self._abort_strays(attempt)
        response = self._paced(
            "create_multipart_upload",
            attempt,
            ContentType=_TYPE,
            ChecksumAlgorithm="SHA256",
            Metadata=marked(self._source.sha256),
            **self._storage_class,
        )
        upload = response.get("UploadId")
        if not upload or response.get("Key") != self._key:
            raise StoreFailed(unproven(self._settings, "create_multipart_upload"))
        part_size = part_size_for(self._source.size, self._settings.part_size)
        begun = Begun(self._name, self._source.sha256, upload, part_size)
        attempt.on_progress(begun.text)
        return begun

    def _abort_strays(self, attempt: Attempt) -> None:
        """Abort uploads of this object that the outbox does not know: it was killed before it knew their id."""
        expected = ("AccessDenied", "NotImplemented")
        try:
            found = self._call("list_multipart_uploads", attempt, expected=expected, Prefix=self._key)
        except Refused:
            return  # the lifecycle rule of the bucket removes them
        for each in found.get("Uploads", ()):
            if each["Key"] == self._key:
                self._call_upload("abort_multipart_upload", each["UploadId"], attempt)

    def _listed(self, begun: Begun, attempt: Attempt) -> dict[int, tuple[str, int]] | None:
        """The parts that the bucket has, by number: ETag and size. None if it does not know the upload any more."""
        found: dict[int, tuple[str, int]] = {}
        marker = 0
        while True:
            try:
                page = self._paced(
                    "list_parts",
                    attempt,
                    expected=NO_UPLOAD,
                    most=_LIST,
                    UploadId=begun.upload,
                    PartNumberMarker=marker,
                )
            except Refused:
                return None
            if page.get("UploadId") != begun.upload:
                raise StoreFailed(unproven(self._settings, "list_parts"))
            found |= {each["PartNumber"]: (each["ETag"], int(each["Size"])) for each in page.get("Parts", ())}
            following = page.get("NextPartNumberMarker")
            if not page.get("IsTruncated") or not following or following <= marker:
                return found
            marker = following

    def _send_parts(
        self, begun: Begun, there: dict[int, tuple[str, int]], attempt: Attempt
    ) -> list[tuple[Part, str]]:
        """Send the parts that the bucket lacks. Returns all of them, each with its ETag."""
        finished: list[tuple[Part, str]] = []
        threads: PartThreads[tuple[Part, str]] = PartThreads(self._settings.parts_at_once, attempt)
        with threads:
            for part in parts_of(self._source, begun.part_size, threads.between):
                etag, size = self._noted(begun, part, there.get(part.number), attempt)
                if size == part.size:
                    finished.append((part, etag))
                    threads.skip(part.size)
                else:
                    threads.start(part.number, partial(self._send_part, begun, part))
            finished += threads.finish()
        return sorted(finished, key=lambda each: each[0].number)

    def _noted(
        self, begun: Begun, part: Part, listed: tuple[str, int] | None, attempt: Attempt
    ) -> tuple[str, int]:
        """Note a part before it is sent. Returns what the bucket has of it: its ETag and size, -1 if it must be sent.

        What the bucket lists counts only if it was noted with the hash that the part has now.
        """
        if len(begun.hashes) < part.number:
            begun.hashes.append(part.short)
            attempt.on_progress(begun.text)
            return "", -1
        if begun.hashes[part.number - 1] == part.short:
            return listed or ("", -1)
        self._abort(begun, attempt)  # an altered file was sent, and the right one is back
        raise StoreFailed(RetryLater(f"parts of another {self._shown} were sent; it will be sent again"))

    def _send_part(self, begun: Begun, part: Part, attempt: Attempt) -> tuple[Part, str]:
        """Send one part, in a thread of its own. Returns it with its ETag."""
        checksum = in_base64(part.digest)
        response = self._paced(
            "upload_part",
            attempt,
            PartBody(self._source, part, proves=not self._is_compared),
            expected=NO_UPLOAD,
            UploadId=begun.upload,
            PartNumber=part.number,
            ChecksumSHA256=checksum,
        )
        if not _proves(response, checksum):
            raise StoreFailed(unproven(self._settings, "upload_part"))
        self._is_compared |= bool(response.get("ChecksumSHA256"))
        return part, str(response["ETag"])

    def _complete(
        self, begun: Begun, finished: list[tuple[Part, str]], target: _Target, attempt: Attempt
    ) -> None:
        """Make one object of the parts, and ask whether it is there."""
        obey(attempt)
        parts = [
            {"PartNumber": part.number, "ETag": etag, "ChecksumSHA256": in_base64(part.digest)}
            for part, etag in finished
        ]
        try:
            response = self._paced(
                "complete_multipart_upload",
                attempt,
                expected=(*NO_UPLOAD, *EXISTS),
                UploadId=begun.upload,
                MultipartUpload={"Parts": parts},
                **target.condition,
            )
        except Refused as refused:
            if self._target(attempt).is_done:
                return  # an earlier request was received, and its response lost
            what = "it is being written by another program"
            if refused.refusal.code in NO_UPLOAD:
                attempt.on_progress(None)
                what = "the upload is gone"
            raise StoreFailed(RetryLater(f"{self._shown}: {what}; it will be sent again")) from None
        if not _proves(response, composite([part.digest for part, _ in finished])):
            raise StoreFailed(unproven(self._settings, "complete_multipart_upload"))
        if not self._target(attempt).is_done:
            attempt.on_progress(None)
            raise StoreFailed(
                RetryLater(f"{self._shown} is not in the bucket as it was sent; it will be sent again")
            )

    def _abort(self, begun: Begun, attempt: Attempt) -> None:
        self._call_upload("abort_multipart_upload", begun.upload, attempt)
        attempt.on_progress(None)

    # --- the object

    def _target(self, attempt: Attempt) -> _Target:
        """What is in the bucket under the name. Raises `StoreFailed` for what hubqueue has not stored."""
        try:
            found = self._call("head_object", attempt, expected=ABSENT, ChecksumMode="ENABLED")
        except Refused:
            return _Target(False, {"IfNoneMatch": "*"})
        if not found.get("ETag"):
            raise StoreFailed(unproven(self._settings, "head_object"))
        same = int(found.get("ContentLength", -1)) == self._source.size
        if same and hash_of(found) == self._source.sha256:
            return _Target(True, {})
        if mark_of(found) is None:
            what = f"the bucket has another {self._shown}, which hubqueue has not stored"
            raise StoreFailed(Blocked(f"{what}{ADVICE}move it away, or delete it", Scope.RUN))
        return _Target(False, {"IfMatch": found["ETag"]})

    @property
    def _shown(self) -> str:
        return clean(self._key, limit=200)

    @property
    def _storage_class(self) -> dict[str, Any]:
        return {"StorageClass": self._settings.storage_class} if self._settings.storage_class else {}

    # --- calls

    def _call(
        self, operation: str, attempt: Attempt, body: Body | None = None, **options: Any
    ) -> dict[str, Any]:
        key: dict[str, Any] = {} if operation == "list_multipart_uploads" else {"Key": self._key}
        silent = attempt if body is not None else attempt.silent()
        return self._calls.call(operation, silent, body=body, **key, **options)

    def _call_upload(self, operation: str, upload: str, attempt: Attempt) -> None:
        try:
            self._call(operation, attempt, expected=NO_UPLOAD, UploadId=upload)
        except Refused:
            return

    def _paced(
        self, operation: str, attempt: Attempt, body: Body | None = None, **options: Any
    ) -> dict[str, Any]:
        """A call that waits and is repeated while the server asks for fewer requests."""
        for number in count():
            try:
                return self._call(operation, attempt, body, **options)
            except StoreFailed as failed:
                wait = _wait(failed.outcome, number)
                if wait is None:
                    raise
                attempt.stop.wait(wait)
            obey(attempt)
        raise AssertionError("numbers do not end")


def _wait(outcome: Outcome, number: int) -> float | None:
    """How many seconds to wait before a call is repeated in the same attempt; None if it is not."""
    if not isinstance(outcome, RetryLater) or outcome.scope is not Scope.DESTINATION or number >= _MOST_WAITS:
        return None
    asked = outcome.after.total_seconds() if outcome.after is not None else 0.0
    if asked > _LONGEST_WAIT:
        return None
    usual = min(_FIRST_WAIT * 2.0**number, _LONGEST_WAIT)
    return max(asked, usual * (0.5 + random.random() / 2))


def _proves(response: dict[str, Any], checksum: str) -> bool:
    """Whether a response is that of a bucket that has stored just this. Some servers do not state the checksum."""
    stated = str(response.get("ChecksumSHA256") or "").partition("-")[0]  # the number of parts may follow
    return bool(response.get("ETag")) and stated in ("", checksum)
