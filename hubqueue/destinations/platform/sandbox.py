"""The fake Platform of the sandbox: the events of a training, upload URLs, and the storage behind them.

Promises: nothing is stored before the whole request was received and parsed; a checkpoint counts only after
its own run has promoted a staged object; an upload URL accepts one whole upload, before it expires. Refuses: a
wrong key (401), an unknown training (404), a wrong shape (400), a promotion without a staged object and an
upload for a replaced run (409), a used or expired URL (403), too many requests (429).

The fields are those of ultralytics-platform 0.1.99. That package does not define every response of the server;
docs/sandbox.md names the choices made here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.sax.saxutils import escape

from hubqueue.destinations.platform import fake_page
from hubqueue.destinations.platform.fake_events import (
    EVENTS,
    Address,
    Event,
    address_in,
    event_label,
    is_whole,
    understood,
    upload_label,
)
from hubqueue.destinations.platform.fake_runs import RunRecord, UploadRecord, apply, begun, find
from hubqueue.sandbox.archive import Fact, opened_privately
from hubqueue.sandbox.budget import Budget
from hubqueue.sandbox.request import BLOCK, Request
from hubqueue.sandbox.response import Dialect, Refused, Response, as_json
from hubqueue.sandbox.routes import Entrance, Prepared, RoutedService, now_text, responding
from hubqueue.sandbox.service import RunDetail, RunSummary

_FILENAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_ENDED = {"action": "training_terminated", "reason": "this training has ended"}


# Cloud storage behind a signed URL: a success has no body, a refusal is XML.
_STORAGE = Dialect(
    done=Response(200),
    null=b"",
    error=lambda reason: f"<?xml version='1.0'?><Error><Message>{escape(reason)}</Message></Error>".encode(),
    error_type="application/xml; charset=UTF-8",
)


class FakePlatform(RoutedService):
    """The routes of Platform, which accepts a key as a bearer token.

    An upload URL is valid for `url_lifetime` seconds. `requests_per_minute` and `uploads_per_minute` are per key
    (None: unlimited). `tracked` are the trainings by model id, oldest first; read them under `Archive.changed`.
    """

    name = "platform"
    title = "Platform"
    events = EVENTS
    facts = frozenset({"tracked", "event", "url", "staged", "cancelled"})
    key_headers = ("authorization",)
    dialect = Dialect(
        done=as_json(200, {"received": True}),
        null=b"null",
        error=lambda reason: json.dumps({"error": reason}).encode(),
    )

    def __init__(
        self,
        *,
        url_lifetime: float = 900.0,
        requests_per_minute: int | None = None,
        uploads_per_minute: int | None = None,
    ) -> None:
        self.tracked: dict[str, RunRecord] = {}
        self._url_lifetime = timedelta(seconds=url_lifetime)
        self._requests, self._uploads = Budget(requests_per_minute), Budget(uploads_per_minute)
        webhooks, storage = "/api/webhooks/", r"/storage/([^/]+)/[^/]+/[^/]+"
        events = re.compile(webhooks + "training/metrics")
        uploads = re.compile(webhooks + "models/upload")
        files = re.compile(r"/files/([^/]+)/[^/]+")
        super().__init__(
            (
                Entrance("POST", events, "event", self._take_event, label=event_label),
                Entrance("POST", uploads, "ckpt", self._give_url, label=upload_label),
                Entrance(
                    "PUT",
                    re.compile(storage),
                    "ckpt",
                    self._take_bytes,
                    needs_key=False,
                    dialect=_STORAGE,
                ),
                Entrance("GET", files, "read", self._serve_file, needs_key=False),
            )
        )

    def variables(self, url: str, key: str) -> dict[str, str]:
        """The environment variables that make a training send to `url`, with `key`."""
        return {"ULTRALYTICS_PLATFORM_URL": url, "ULTRALYTICS_API_KEY": key}

    def key_of(self, request: Request) -> str:
        """The API key of a request."""
        return request.bearer()

    def admit(self, entrance: Entrance, request: Request, key: str) -> None:
        """Each key has a budget per minute: 429 for requests above it."""
        budget = self._uploads if entrance.kind == "ckpt" else self._requests
        wait = budget.take(key, now=time.monotonic())
        if wait:
            reset = (datetime.now(UTC) + timedelta(seconds=wait)).isoformat(timespec="milliseconds")
            headers = (
                ("Retry-After", str(wait)),
                ("X-RateLimit-Limit", str(budget.per_minute)),
                ("X-RateLimit-Remaining", "0"),
                ("X-RateLimit-Reset", reset.replace("+00:00", "Z")),
            )
            raise Refused(429, f"more than {budget.per_minute} a minute for this key", headers=headers)

    # --- state

    def reset(self) -> None:
        """Clear the state. Called before the archive reads its facts back."""
        self.tracked.clear()

    def apply(self, fact: Fact) -> None:
        """Apply one fact."""
        model_id = fact["model"]
        if fact["fact"] == "tracked":
            self.tracked[model_id] = begun(fact)
        apply(fact, self.tracked[model_id], self._archive.folder_of(model_id))

    # --- events

    def _take_event(self, request: Request, _: str) -> Prepared:
        event = understood(request.json_object())
        starts = event.name == "training_started"
        is_new = starts and event.address.model_id is None
        if not is_new and not self._archive.has_receipt(request.receipt):
            self._addressed(event.address)

        def make() -> tuple[Fact, Response]:
            if is_new:
                return self._tracked(event, request.root)
            run = self._addressed(event.address)
            return self._resumed(event, run, request.root) if starts else self._counted(event, run)

        epochs = (event.data["epoch"],) if event.name == "epoch_end" else ()
        return Prepared(lambda: self._keep(request, make), epochs=epochs)

    def _addressed(self, address: Address) -> RunRecord:
        if address.model_id is not None:
            found = self.tracked.get(address.model_id)
        else:
            of_project = [run for run in self._all() if run.project == address.project]
            named = [run for run in of_project if address.name in (run.name, run.asked_name)]
            found = named[-1] if named else None
        if found is None:
            raise Refused(404, "there is no such model")
        return found

    def _tracked(self, event: Event, root: str) -> tuple[Fact, Response]:
        asked = event.address.name
        taken = {run.name for run in self.tracked.values() if run.project == event.address.project}
        name, number = asked, 1
        while name in taken:
            number += 1
            name = f"{asked}-{number}"
        model_id, run_id = self._new_id(), self._next_run_id()
        fact = _fact("tracked", model_id, event=event.name, data=event.data, run=run_id)
        fact |= {"project": event.address.project, "asked": asked, "name": name}
        return fact, _started(model_id, run_id, name, root)

    def _new_id(self) -> str:
        while (new := secrets.token_hex(12)) in self.tracked:
            pass
        return new

    def _next_run_id(self) -> int:
        """The id of the next run: unique, and higher than all others."""
        return sum(len(run.run_ids) for run in self.tracked.values()) + 1

    def _all(self) -> list[RunRecord]:
        with self._archive.changed:
            return list(self.tracked.values())

    def _resumed(self, event: Event, run: RunRecord, root: str) -> tuple[Fact, Response]:
        fact = _fact("event", run.model_id, event=event.name, data=event.data, run=run.run_id)
        if run.state in ("cancelled", "complete"):
            more = {"modelId": run.model_id, "cancelled": True} | _ENDED
            return fact | {"ignored": "ended"}, _received(event.name, **more)
        run_id = self._next_run_id()
        return fact | {"run": run_id}, _started(run.model_id, run_id, run.name, root)

    def _counted(self, event: Event, run: RunRecord) -> tuple[Fact, Response]:
        run_id = run.run_id if event.run_id is None else event.run_id
        fact = _fact("event", run.model_id, event=event.name, data=event.data, run=run_id)
        more: dict[str, Any] = {"modelId": run.model_id}
        if run.cancelled:
            more |= {"cancelled": True} | _ENDED
        if run_id != run.run_id:
            stale = {"ignored": "stale_instance"}
            return fact | stale, _received(event.name, **more, **stale)
        if event.name == "checkpoint_saved":
            upload = find(run, event.data["modelPath"])
            if upload is None or upload.staged_at is None or upload.run_id != run_id:
                raise Refused(409, "this run has no such staged object")
            if event.data.get("uploadPath") not in (None, upload.upload_path):
                raise Refused(409, "uploadPath is not that of this object")
            if upload.promoted_at is None:
                fact["promotes"] = upload.object_path
        return fact, _received(event.name, **more)

    # --- checkpoints

    def _give_url(self, request: Request, _: str) -> Prepared:
        body = request.json_object()
        filename, run_id = body.get("filename"), body.get("runId")
        if not isinstance(filename, str) or not _FILENAME.fullmatch(filename):
            raise Refused(400, "filename has to be a plain file name")
        if not is_whole(run_id) and run_id is not None:
            raise Refused(400, "runId has to be a whole number")
        address = address_in(body)

        def make() -> tuple[Fact, Response]:
            run = self._addressed(address)
            if run_id not in (None, run.run_id):
                raise Refused(409, "a newer run has replaced this one")
            folder, token = secrets.token_hex(8), secrets.token_urlsafe(24)
            expires = datetime.now(UTC) + self._url_lifetime
            paths = {
                "object": f"gs://sandbox/{run.model_id}/{folder}/{filename}",
                "upload_path": f"{run.model_id}/{folder}/{filename}",
            }
            given = {"filename": filename, "run": run_id, "token": token, "expires_at": expires.isoformat()}
            url = f"{request.root}/storage/{paths['upload_path']}?expires={expires.timestamp():.0f}&signature={token}"
            more = {"uploadUrl": url, "gcsPath": paths["object"], "uploadPath": paths["upload_path"]}
            return _fact("url", run.model_id, **paths, **given), as_json(
                200, more | {"modelId": run.model_id}
            )

        # Always a new URL, even for a known Idempotency-Key: the URL of the earlier response may be used up.
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
            raise Refused(507, f"the sandbox cannot store this: {error.strerror}") from error
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise

        def make() -> tuple[Fact, Response]:
            run, upload = self._signed(request, model_id)
            number = sum(each.staged_at is not None for each in run.uploads) + 1
            file = self._archive.store(arriving, model_id, number, upload.filename)
            fact = _fact("staged", model_id, object=upload.object_path, counts=upload.run_id is None)
            fact |= {"size": request.body.length, "sha256": digest.hexdigest(), "file": file}
            return fact | {"with_key": "authorization" in request.headers}, _STORAGE.done

        def commit() -> tuple[Response, bool]:
            try:
                return self._archive.keep(None, make)
            finally:
                arriving.unlink(missing_ok=True)

        return Prepared(commit, lambda: arriving.unlink(missing_ok=True))

    def _signed(self, request: Request, model_id: str) -> tuple[RunRecord, UploadRecord]:
        """The upload that a signed URL is for. Raises `Refused` (403) if the URL is not valid (any more)."""
        run = self.tracked.get(model_id)
        upload_path = request.path.removeprefix("/storage/")
        upload = (
            next((each for each in run.uploads if each.upload_path == upload_path), None) if run else None
        )
        token = request.query.get("signature", [""])[-1]
        if run is None or upload is None or not hmac.compare_digest(token.encode(), upload.token.encode()):
            raise Refused(403, "the signature does not match")
        if upload.staged_at is not None:
            raise Refused(403, "this URL was already used")
        if datetime.now(UTC) >= upload.expires_at:
            raise Refused(403, "this URL has expired")
        return run, upload

    def _serve_file(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        run, name = self.tracked.get(model_id), request.path.rpartition("/")[2]
        named = [each for each in run.files if each.filename == name] if run else []
        if not named or named[-1].path is None or not named[-1].path.is_file():
            raise Refused(404, "there is no such file")
        return responding(Response(200, content_type="application/octet-stream", file=named[-1].path))

    # --- what the page shows

    def runs(self) -> Sequence[RunSummary]:
        """Every training, as the page shows it."""
        return [fake_page.summary(run) for run in self.tracked.values()]

    def run(self, run_id: str) -> RunDetail | None:
        """One training with all its details, or None."""
        run = self.tracked.get(run_id)
        return fake_page.detail(run) if run else None

    def cancel(self, run_id: str) -> bool:
        """Cancel a training: every further response reports it. False if the id is unknown."""
        with self._archive.changed:
            if run_id not in self.tracked:
                return False
            self._archive.keep(None, lambda: (_fact("cancelled", run_id), Response(200)))
            return True

    def document(self, path: str) -> None:
        """Always None: Platform shows only its runs."""


def _fact(fact: str, model_id: str, **more: Any) -> Fact:
    return {"fact": fact, "model": model_id, "at": now_text()} | more


def _received(event: str, **more: Any) -> Response:
    return as_json(200, {"received": True, "event": event} | more)


def _started(model_id: str, run_id: int, name: str, root: str) -> Response:
    url = f"{root}/runs/{model_id}"
    return _received(
        "training_started", mode="remote", modelId=model_id, runId=run_id, modelSlug=name, modelUrl=url
    )
