"""The http destination passes the conformance tests, over the example server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from http_stage import KEY, TOKEN, Server
from protocol import Exchange
from representative import only_fast

from hubqueue.destinations.base import Kind
from hubqueue.testing.conformance import BAD_MARK, WAIT, Conformance, Fault, Received

_KINDS = {
    "runs": Kind.REGISTRATION,
    "metrics": Kind.METRICS,
    "manifest": Kind.CKPT,
    "files": Kind.CKPT,
    "end": Kind.COMPLETION,
}
_REFUSALS = {
    Fault.SLOW_DOWN: (429, {"Retry-After": str(WAIT)}, b'{"message": "later"}'),
    Fault.ERROR: (500, {}, b'{"message": "a defect"}'),
    Fault.NONSENSE: (200, {"Content-Type": "text/html"}, b"<html>please log in</html>"),
    Fault.KEY_REFUSED: (401, {}, b'{"message": "wrong token"}'),
    Fault.ENTRY_REFUSED: (422, {}, b'{"message": "such content is not accepted"}'),
}


@dataclass
class _Rule:
    fault: Fault
    kind: Kind | None
    after: int
    times: int | None
    over: asyncio.Event = field(default_factory=asyncio.Event)  # set when it is removed

    def applies(self, kind: Kind | None, body: bytes) -> bool:
        """Whether it is for this request; counts it."""
        if self.kind not in (None, kind) or (
            self.fault is Fault.ENTRY_REFUSED and BAD_MARK.encode() not in body
        ):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return self.times is None or self.times >= 0


class Example:
    """The example server, with faults before it."""

    type = "http"
    faults = frozenset(Fault)
    secrets: Mapping[str, str] = {"token": TOKEN, "signing_key": KEY}
    environ: Mapping[str, str] = {}

    def __init__(self, server: Server) -> None:
        self.server, self._rules = server, list[_Rule]()
        self._loop: asyncio.AbstractEventLoop | None = None  # of the server, once it has had a request
        server.recorder.instead = self._instead

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {"url": self.server.url}

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        if fault is Fault.UNREACHABLE:
            self.server.stop()
        else:
            self._rules.append(_Rule(fault, kind, after, times))

    def heal(self) -> None:
        removed, self._rules = self._rules, []
        if self._loop is not None and not self._loop.is_closed():
            for each in removed:
                self._loop.call_soon_threadsafe(each.over.set)
        self.server.start()

    def received(self) -> Mapping[str, Received]:
        return {each.parent.name: self._run(each.parent) for each in self.server.folder.glob("*/run.json")}

    def _run(self, run: Path) -> Received:
        batches = sorted(run.glob("metrics/*.json"), key=lambda each: each.stat().st_mtime_ns)
        logged = [each for batch in batches for each in json.loads(batch.read_bytes())["metrics"]]
        manifests = [json.loads(each.read_bytes()) for each in run.glob("manifest/*.json")]
        state = json.loads((run / "run.json").read_bytes())["state"]
        puts = [each for each in self.server.exchanges if each.target.startswith(f"/runs/{run.name}/files/")]
        return Received(
            metrics=[
                (f"step:{each['step']}" if "step" in each else str(each["epoch"]), each["values"])
                for each in logged
            ],
            checkpoints=[
                {
                    each["path"]: (run / "files" / manifest["folder"] / each["path"]).read_bytes()
                    for each in manifest["files"]
                }
                for manifest in manifests
            ],
            ends=[] if state == "running" else [state],
            upload_bytes=sum(each.received for each in puts),
        )

    async def _instead(self, made: Exchange, scope: Any, receive: Any, send: Any) -> bool:
        """Respond by the first rule that applies to a request; False if there are no rules."""
        self._loop = asyncio.get_running_loop()
        if not self._rules:
            return False
        parts = [each for each in scope["path"].split("/") if each]
        name = "files" if parts[2:3] == ["files"] else parts[-1]
        kind = _KINDS.get(name) if scope["method"] != "GET" else None
        body, ended = b"", False
        while not ended:
            message = await receive()
            body += message.get("body", b"")
            ended = message["type"] == "http.disconnect" or not message.get("more_body")
        rule = next((each for each in self._rules if each.applies(kind, body)), None)
        if rule is None or rule.fault is Fault.LOST:
            status, headers, content = await self._carried_out(made, scope, body)
        elif rule.fault in _REFUSALS:
            status, more, content = _REFUSALS[rule.fault]
            headers = {"Content-Type": "application/json", **more}
        else:
            status, headers, content = 200, {}, b'{"received": true}'
        if rule is not None and rule.fault is Fault.HANG:
            await rule.over.wait()
            return True
        cut = rule is not None and rule.fault in (Fault.BROKEN_OFF, Fault.LOST)
        headers = {**headers, "Content-Length": str(len(content) + (10 if cut else 0))}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
        return True

    async def _carried_out(
        self, made: Exchange, scope: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """What the application responds to a request whose body was read already."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        status, headers, content = 0, {}, b""

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status, headers, content
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode(): value.decode() for name, value in message["headers"]}
            content += message.get("body", b"")

        await self.server.recorder.carry_out(made, scope, receive, send)
        headers.pop("content-length", None)
        return status, headers, content


@only_fast(
    "test_a_whole_training_arrives_once",
    "test_a_step_is_the_key",
    "test_a_folder_is_there_only_when_all_its_files_are",
    "test_a_refused_entry_blocks_no_other",
    "test_a_stop_ends_an_attempt",
    "test_a_broken_off_upload_continues",
    "test_what_was_sent_is_read_back_byte_for_byte",
    "test_what_is_not_there_is_reported_so",
    "test_a_service_that_cannot_be_read_is_reported_so",
)
class TestHttp(Conformance):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[Example]:
        with Server(tmp_path / "runs") as running:
            yield Example(running)
            running.exchanges.clear()  # with faults, they do not fit the document
