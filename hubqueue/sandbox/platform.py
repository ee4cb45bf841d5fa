"""Platform's side of the protocol: the events of a training, upload URLs, and the storage behind them.

Promises: nothing is kept before the whole request was received and understood; a checkpoint counts only when
its own run has promoted a staged object; an upload URL takes one whole upload, before it expires. Refuses: a
wrong key (401), a training it does not know (404), a wrong shape (400), promoting what is not staged and
uploading for a run that was replaced (409), a used or expired URL (403), too many requests (429).

The fields are those of ultralytics-platform 0.1.99. Where that leaves the server's answer open, docs/sandbox.md
says what was chosen.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hubqueue.sandbox.answers import PLATFORM, STORAGE, Answer, Refused, as_json
from hubqueue.sandbox.archive import Archive, opened_privately
from hubqueue.sandbox.budget import Budget
from hubqueue.sandbox.event import Address, Event, address_in, event_label, is_whole, understood, upload_label
from hubqueue.sandbox.model import Fact
from hubqueue.sandbox.records import RunRecord, UploadRecord
from hubqueue.sandbox.request import BLOCK, Request
from hubqueue.sandbox.routes import Entrance, Prepared, Route, Service, answering, now_text
from hubqueue.sandbox.tracking import find

_FILENAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_ENDED = {"action": "training_terminated", "reason": "this training has ended"}


class Platform(Service):
    """The routes of Platform. `url_lifetime` is how long an upload URL can be used."""

    dialect = PLATFORM

    def __init__(
        self,
        archive: Archive,
        keys: tuple[str, ...],
        *,
        honour_idempotency: bool,
        url_lifetime: timedelta,
        requests: Budget,
        uploads: Budget,
    ) -> None:
        self._url_lifetime = url_lifetime
        self._requests, self._uploads = requests, uploads
        webhooks = "/api/webhooks/"
        table = (
            Entrance(
                "POST",
                re.compile(webhooks + "training/metrics"),
                "event",
                self._take_event,
                label=event_label,
            ),
            Entrance(
                "POST", re.compile(webhooks + "models/upload"), "ckpt", self._give_url, label=upload_label
            ),
            Entrance(
                "PUT",
                re.compile(r"/storage/([^/]+)/[^/]+/[^/]+"),
                "ckpt",
                self._take_bytes,
                needs_key=False,
                dialect=STORAGE,
            ),
            Entrance("GET", re.compile(r"/files/([^/]+)/[^/]+"), "read", self._serve_file, needs_key=False),
        )
        super().__init__(archive, keys, table, honour_idempotency=honour_idempotency)

    def key_of(self, request: Request) -> str:
        return request.bearer()

    def admit(self, route: Route, request: Request) -> None:
        if not route.needs_key:
            return
        budget = self._uploads if route.kind == "ckpt" else self._requests
        wait = budget.take(self.key_of(request), now=time.monotonic())
        if wait:
            reset = (datetime.now(UTC) + timedelta(seconds=wait)).isoformat(timespec="milliseconds")
            headers = (
                ("Retry-After", str(wait)),
                ("X-RateLimit-Limit", str(budget.per_minute)),
                ("X-RateLimit-Remaining", "0"),
                ("X-RateLimit-Reset", reset.replace("+00:00", "Z")),
            )
            raise Refused(429, f"more than {budget.per_minute} a minute for this key", headers=headers)

    # --- events

    def _take_event(self, request: Request, _: str) -> Prepared:
        event = understood(request.json_object())
        starts = event.name == "training_started"
        is_new = starts and event.address.model_id is None
        if not is_new and not self._archive.has_receipt(request.receipt):
            self._addressed(event.address)

        def make() -> tuple[Fact, Answer]:
            if is_new:
                return self._tracked(event, request.root)
            run = self._addressed(event.address)
            return self._resumed(event, run, request.root) if starts else self._counted(event, run)

        epochs = (event.data["epoch"],) if event.name == "epoch_end" else ()
        return Prepared(lambda: self._keep(request, make), epochs=epochs)

    def _addressed(self, address: Address) -> RunRecord:
        if address.model_id is not None:
            found = self._archive.run(address.model_id)
        else:
            of_project = [run for run in self._archive.runs() if run.project == address.project]
            named = [run for run in of_project if address.name in (run.name, run.asked_name)]
            found = named[-1] if named else None
        if found is None:
            raise Refused(404, "there is no such model")
        return found

    def _tracked(self, event: Event, root: str) -> tuple[Fact, Answer]:
        asked = event.address.name
        taken = {run.name for run in self._archive.runs() if run.project == event.address.project}
        name, number = asked, 1
        while name in taken:
            number += 1
            name = f"{asked}-{number}"
        model_id, run_id = self._new_id(), self._archive.next_run_id()
        fact = _fact("tracked", model_id, event=event.name, data=event.data, run=run_id)
        fact |= {"project": event.address.project, "asked": asked, "name": name}
        return fact, _started(model_id, run_id, name, root)

    def _new_id(self) -> str:
        while self._archive.is_taken(new := secrets.token_hex(12)):
            pass
        return new

    def _resumed(self, event: Event, run: RunRecord, root: str) -> tuple[Fact, Answer]:
        fact = _fact("event", run.model_id, event=event.name, data=event.data, run=run.run_id)
        if run.state in ("cancelled", "complete"):
            said = {"modelId": run.model_id, "cancelled": True} | _ENDED
            return fact | {"ignored": "ended"}, _received(event.name, **said)
        run_id = self._archive.next_run_id()
        return fact | {"run": run_id}, _started(run.model_id, run_id, run.name, root)

    def _counted(self, event: Event, run: RunRecord) -> tuple[Fact, Answer]:
        run_id = run.run_id if event.run_id is None else event.run_id
        fact = _fact("event", run.model_id, event=event.name, data=event.data, run=run_id)
        said: dict[str, Any] = {"modelId": run.model_id}
        if run.cancelled:
            said |= {"cancelled": True} | _ENDED
        if run_id != run.run_id:
            stale = {"ignored": "stale_instance"}
            return fact | stale, _received(event.name, **said, **stale)
        if event.name == "checkpoint_saved":
            upload = find(run, event.data["modelPath"])
            if upload is None or upload.staged_at is None or upload.run_id != run_id:
                raise Refused(409, "this run has no such staged object")
            if event.data.get("uploadPath") not in (None, upload.upload_path):
                raise Refused(409, "uploadPath is not that of this object")
            if upload.promoted_at is None:
                fact["promotes"] = upload.object_path
        return fact, _received(event.name, **said)

    # --- checkpoints

    def _give_url(self, request: Request, _: str) -> Prepared:
        body = request.json_object()
        filename, run_id = body.get("filename"), body.get("runId")
        if not isinstance(filename, str) or not _FILENAME.fullmatch(filename):
            raise Refused(400, "filename has to be a plain file name")
        if not is_whole(run_id) and run_id is not None:
            raise Refused(400, "runId has to be a whole number")
        address = address_in(body)

        def make() -> tuple[Fact, Answer]:
            run = self._addressed(address)
            if run_id not in (None, run.run_id):
                raise Refused(409, "a newer run has taken the place of this one")
            place, token = secrets.token_hex(8), secrets.token_urlsafe(24)
            expires = datetime.now(UTC) + self._url_lifetime
            paths = {
                "object": f"gs://sandbox/{run.model_id}/{place}/{filename}",
                "upload_path": f"{run.model_id}/{place}/{filename}",
            }
            given = {"filename": filename, "run": run_id, "token": token, "expires_at": expires.isoformat()}
            url = f"{request.root}/storage/{paths['upload_path']}?expires={expires.timestamp():.0f}&signature={token}"
            said = {"uploadUrl": url, "gcsPath": paths["object"], "uploadPath": paths["upload_path"]}
            return _fact("url", run.model_id, **paths, **given), as_json(
                200, said | {"modelId": run.model_id}
            )

        # Always a new URL, whatever the Idempotency-Key: the answer to an earlier request may be used up.
        return Prepared(lambda: self._archive.keep(None, make))

    def _take_bytes(self, request: Request, model_id: str) -> Prepared:
        if request.headers.get_content_type() != "application/octet-stream":
            raise Refused(403, "the URL was signed for Content-Type: application/octet-stream")
        request.need_length()
        self._signed(request, model_id)
        arriving = self._archive.incoming()
        digest = hashlib.sha256()
        try:
            with open(arriving, "wb", opener=opened_privately) as file:
                while block := request.body.read(BLOCK):
                    file.write(block)
                    digest.update(block)
        except OSError as error:
            arriving.unlink(missing_ok=True)
            raise Refused(507, f"the sandbox cannot keep this: {error.strerror}") from error
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise

        def make() -> tuple[Fact, Answer]:
            run, upload = self._signed(request, model_id)
            file = self._shelved(arriving, run, upload)
            fact = _fact("staged", model_id, object=upload.object_path, counts=upload.run_id is None)
            fact |= {"size": request.body.length, "sha256": digest.hexdigest(), "file": file}
            return fact | {"with_key": "authorization" in request.headers}, STORAGE.done

        def commit() -> tuple[Answer, bool]:
            try:
                return self._archive.keep(None, make)
            finally:
                arriving.unlink(missing_ok=True)

        return Prepared(commit, lambda: arriving.unlink(missing_ok=True))

    def _signed(self, request: Request, model_id: str) -> tuple[RunRecord, UploadRecord]:
        """The upload that a signed URL is for. Raises `Refused` (403) when it cannot be used (any more)."""
        run = self._archive.run(model_id)
        upload_path = request.path.removeprefix("/storage/")
        upload = (
            next((each for each in run.uploads if each.upload_path == upload_path), None) if run else None
        )
        token = request.query.get("signature", [""])[-1]
        if run is None or upload is None or not hmac.compare_digest(token.encode(), upload.token.encode()):
            raise Refused(403, "the signature does not match")
        if upload.staged_at is not None:
            raise Refused(403, "this URL was used")
        if datetime.now(UTC) >= upload.expires_at:
            raise Refused(403, "this URL has expired")
        return run, upload

    def _shelved(self, arriving: Path, run: RunRecord, upload: UploadRecord) -> str:
        folder = self._archive.weights_folder(run.model_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        number = sum(each.staged_at is not None for each in run.uploads) + 1
        file = f"{number:06d}-{upload.filename}"
        arriving.replace(folder / file)
        return file

    def _serve_file(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        run, name = self._archive.run(model_id), request.path.rpartition("/")[2]
        named = [each for each in run.files if each.filename == name] if run else []
        if not named or named[-1].path is None or not named[-1].path.is_file():
            raise Refused(404, "there is no such file")
        return answering(Answer(200, content_type="application/octet-stream", file=named[-1].path))


def _fact(fact: str, model_id: str, **more: Any) -> Fact:
    return {"fact": fact, "model": model_id, "at": now_text()} | more


def _received(event: str, **more: Any) -> Answer:
    return as_json(200, {"received": True, "event": event} | more)


def _started(model_id: str, run_id: int, name: str, root: str) -> Answer:
    url = f"{root}/api/runs/{model_id}"
    return _received(
        "training_started", mode="remote", modelId=model_id, runId=run_id, modelSlug=name, modelUrl=url
    )
