"""The conformance tests can fail: each broken destination here fails the test that is meant for it.

Each is the plugin of docs/destinations.md with one line changed, as its author might have written it.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from plugin_stage import PAGE, in_this_process, install, page_tests

from hubqueue.destinations.base import Kind, RunState
from hubqueue.testing.conformance import Conformance, Fault, Received, Stage, staged

_PAGE: dict[str, Any] = {}
exec(compile(page_tests(), PAGE, "exec"), _PAGE)

INIT, TRANSPORT = "__init__.py", "transport.py"
A_FAULT = "test_a_fault_delivers_and_loses_nothing"
# Lines of the page.
IF_NONE = "        if not isinstance(response, ApiResponse):\n            return response"
IF_UNPROVEN = 'if (response.json or {}).get("received") is not True:'
ASK = '"POST", self._root + path, body, attempt, idempotency_key=key'
KEY = "key = batch.idempotency_key + end if batch else None"
PARTS = "parts_of(batch.entries[0].snapshot, self._open_body)"
FILE = "file = File(part.size, lambda part=part: self._open_body(part.snapshot))"
METRICS = "body = json.dumps({entry.key: json.loads(entry.payload) for entry in entries})"
IF_FAILED = "            if not isinstance(sent, Delivered):\n                return sent"
IMPORT = "import json\n"
SEND = "    def send(self, batch, attempt):\n"
DONE = "            done += part.size\n"


class FakeCollector(_PAGE["FakeCollector"]):
    """The fake of the page, which also counts bytes, and can be read."""

    def kind_of(self, method: str, parts: list[str]) -> Kind | None:
        return super().kind_of(method, parts) if method == "POST" else None

    def carry_out(self, request: Any) -> Mapping[str, Any]:
        if request.method == "POST":
            return super().carry_out(request)
        shown = {
            run: [
                {path: base64.b64encode(data).decode() for path, data in files.items()}
                for files in each.checkpoints
            ]
            for run, each in self.runs.items()
        }
        return {"received": True, "runs": shown}

    def received(self) -> Mapping[str, Received]:
        return {
            run: dataclasses.replace(each, upload_bytes=self.upload_bytes) for run, each in self.runs.items()
        }


class Broken(NamedTuple):
    """A change of a file of the page, and the test that it fails."""

    test: str
    was: str
    now: str
    argument: object = None
    file: str = TRANSPORT


@contextmanager
def stage_of(folder: Path, *changes: tuple[str, str, str], patience: float | None = None) -> Iterator[Stage]:
    """A stage that sends with the package of the page, changed: file, old text, new text. `patience` is that of the stage."""
    site = install(folder / "site")
    for name, was, now in changes:
        module = site / "hubqueue_collector" / name
        assert was in module.read_text(), f"the page no longer has {was!r}"
        module.write_text(module.read_text().replace(was, now))
    with in_this_process(site), FakeCollector() as service, staged(service, folder / "stage") as stage:
        stage.patience = patience or stage.patience
        yield stage


def passes(stage: Stage, test: str, argument: object = None, kit: Conformance | None = None) -> None:
    """Run one test. A skipped one is a failure of the control."""
    try:
        getattr(kit or Conformance(), test)(stage, *([] if argument is None else [argument]))
    except pytest.skip.Exception as skipped:
        raise RuntimeError(f"skipped: {skipped}") from skipped


BROKEN = {
    "counts a broken-off response": Broken(
        A_FAULT,
        IF_NONE,
        IF_NONE.replace(
            "return response", "return Delivered() if 'cut off' in response.reason else response"
        ),
        Fault.BROKEN_OFF,
    ),
    "counts every 200": Broken(A_FAULT, IF_UNPROVEN, "if False:", Fault.NONSENSE),
    "counts a refused key": Broken(
        A_FAULT,
        IF_NONE,
        IF_NONE.replace("return response", "return Delivered() if 'key' in response.reason else response"),
        Fault.KEY_REFUSED,
    ),
    "has a new key for each attempt": Broken(
        A_FAULT, KEY, "import uuid; key = str(uuid.uuid4())", Fault.LOST
    ),
    "raises": Broken(
        A_FAULT,
        IF_NONE,
        IF_NONE.replace("return response", "raise OSError(response.reason)"),
        Fault.UNREACHABLE,
    ),
    "explains itself in two lines": Broken(
        A_FAULT,
        IF_NONE,
        IF_NONE.replace("return response", "return type(response)('it\\nfailed')"),
        Fault.ERROR,
    ),
    "retries a refused entry": Broken(
        "test_a_refused_entry_blocks_no_other",
        IF_NONE,
        IF_NONE.replace(
            "return response",
            "from hubqueue.destinations.base import RetryLater\n            return RetryLater(response.reason)",
        ),
    ),
    "retries a refused checkpoint as a whole run": Broken(
        "test_a_refused_checkpoint_blocks_no_other",
        IF_NONE,
        IF_NONE.replace(
            "return response",
            "from hubqueue.destinations.base import Blocked\n            return Blocked(response.reason, Scope.RUN)",
        ),
    ),
    "sends one request at a time": Broken(
        "test_a_slow_checkpoint_delays_no_metrics",
        SEND,
        "    import threading\n    lock = threading.Lock()\n" + SEND + "        with self.lock:\n"
        "            return self.locked(batch, attempt)\n\n    def locked(self, batch, attempt):\n",
    ),
    "ignores a stop": Broken(
        "test_a_stop_ends_an_attempt",
        ASK,
        ASK.replace("attempt", "__import__('dataclasses').replace(attempt, stop=quiet().stop)"),
        Kind.METRICS,
    ),
    "does not report its start": Broken(
        "test_each_attempt_reports_its_start",
        ASK,
        ASK.replace("attempt", "__import__('dataclasses').replace(attempt, on_start=lambda: None)"),
    ),
    "waits with one lane only": Broken(
        "test_a_wait_that_the_service_asks_for_is_for_all_lanes",
        IF_NONE,
        IF_NONE.replace(
            "return response", "return __import__('dataclasses').replace(response, scope=Scope.LANE)"
        ),
    ),
    "holds the whole body": Broken(
        "test_memory_does_not_grow_with_a_checkpoint",
        FILE,
        "file = Bytes(b''.join(bytes(each) for each in self._open_body(part.snapshot)))",
    ),
    "changes the bytes": Broken("test_a_whole_training_arrives_once", FILE, "file = Bytes(b'x' * part.size)"),
    "sends each entry twice": Broken(
        "test_a_whole_training_arrives_once",
        "        if batch.kind is Kind.METRICS:\n",
        "        if batch.kind is Kind.METRICS:\n            self._post(f'{run}/metrics', Bytes(json.dumps({entries[0].key: "
        "json.loads(entries[0].payload)}).encode()), attempt)\n",
    ),
    "sends the manifest first": Broken(
        "test_a_folder_is_there_only_when_all_its_files_are", PARTS, PARTS + "[::-1]"
    ),
    "goes past a file that failed": Broken(
        "test_a_folder_is_there_only_when_all_its_files_are",
        IF_FAILED,
        "            if not isinstance(sent, Delivered):\n                continue",
    ),
    "leaves out empty files": Broken(
        "test_a_folder_arrives_whole",
        FILE,
        f"if not part.size:\n                continue\n            {FILE}",
    ),
    "mixes runs": Broken("test_two_runs_stay_apart", 'f"/{batch.run.id}"', '"/run"'),
    "sends an epoch only once": Broken(
        "test_a_later_value_of_an_epoch_counts",
        METRICS,
        "seen = self.__dict__.setdefault('seen', set())\n            "
        "body = json.dumps({entry.key: json.loads(entry.payload) for entry in entries if entry.key not in seen})\n"
        "            seen.update(entry.key for entry in entries)",
    ),
    "takes a step for an epoch": Broken(
        "test_a_step_is_the_key", METRICS, METRICS.replace("entry.key", "entry.key.removeprefix('step:')")
    ),
    "forgets that a heartbeat has no entries": Broken(
        "test_a_heartbeat_arrives_or_is_dropped",
        "Kind.CKPT, Kind.COMPLETION)",
        "Kind.CKPT, Kind.COMPLETION, Kind.HEARTBEAT)",
        file=INIT,
    ),
    "always reports success": Broken(
        "test_the_end_of_a_training_arrives",
        '{"state": state}',
        '{"state": "finished"}',
        RunState.FAILED,
        INIT,
    ),
    "checks nothing": Broken(
        "test_check_reports_what_the_service_does",
        'return self._post("", Bytes(b"{}"), quiet())',
        "return Delivered()",
    ),
    "explains itself with its key": Broken(
        "test_no_secret_is_written_anywhere",
        IF_NONE,
        IF_NONE.replace(
            "return response",
            "import base64\n            from hubqueue.destinations.base import RetryLater\n            "
            "return RetryLater(base64.b64encode(self._api.keys()[0].encode()).decode())",
        ),
    ),
    "logs its key": Broken(
        "test_no_secret_is_written_anywhere",
        SEND,
        SEND
        + "        __import__('logging').getLogger('lab').debug('%s', self._api.keys()[0].others['secret'])\n",
    ),
    "stores a progress that it never reads": Broken(
        "test_a_broken_off_upload_continues", DONE, DONE + "            attempt.on_progress(str(done))\n"
    ),
    "stores twice after a kill": Broken(
        "test_a_kill_at_any_step_loses_and_repeats_nothing", KEY, "import uuid; key = str(uuid.uuid4())"
    ),
}
READER = """import base64
import hashlib
import json
import urllib.request
from http.client import HTTPException

from hubqueue.destinations.base import DestinationUnavailable, NotThere, StoredCheckpoint, StoredFile, StoredRun


class CollectorReader:
    def __init__(self, settings, keys):
        (key,) = keys()
        headers = {"X-Id": key, "X-Secret": key.others["secret"]}
        self.request = urllib.request.Request(f"{settings.url}/projects/default/runs", headers=headers)

    def asked(self):
        try:
            with urllib.request.urlopen(self.request) as response:
                return json.load(response)["runs"]
        except (OSError, HTTPException, ValueError) as error:
            raise DestinationUnavailable(str(error), hint="is the collector running?") from error

    def runs(self):
        return [StoredRun(name=each, id=each) for each in self.asked()]

    def checkpoints(self, run):
        if run not in self.asked():
            raise NotThere(f"no run {run}")
        (checkpoint,) = self.asked()[run]
        files = {path: base64.b64decode(data) for path, data in checkpoint.items()}
        self.files = files
        return (StoredCheckpoint("last", tuple(map(self.file, files)), is_folder=True),)

    def file(self, path):
        data = self.files[path]
        return StoredFile(path, len(data), hashlib.sha256(data).hexdigest())

    def blocks(self, checkpoint, file, *, start=0):
        data = self.files[file.path][start:]
        for at in range(0, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    def hashed(self, checkpoint, file):
        return self.file(file.path)

    def close(self):
        pass
"""
READ_BACK = "test_what_was_sent_is_read_back_byte_for_byte"
BROKEN_READERS = {
    "starts at the beginning": (READ_BACK, "[start:]", ""),
    "loses the last byte": (READ_BACK, "[start:]", "[start:-1]"),
    "has one large block": (READ_BACK, "1 << 20", "1 << 30"),
    "hashes something else": (READ_BACK, "sha256(data)", "sha256(path.encode())"),
    "leaves out a file": (READ_BACK, "tuple(map(self.file, files))", "tuple(map(self.file, files))[1:]"),
    "has nothing of a run that is not there": (
        "test_what_is_not_there_is_reported_so",
        'raise NotThere(f"no run {run}")',
        "return ()",
    ),
    "raises what its library raises": (
        "test_a_service_that_cannot_be_read_is_reported_so",
        "(OSError, HTTPException, ValueError)",
        "(HTTPException, ValueError)",
    ),
    "takes a login page for an empty service": (
        "test_a_service_that_cannot_be_read_is_reported_so",
        'json.load(response)["runs"]',
        '(json.load(response) if "json" in response.headers["Content-Type"] else {"runs": {}})["runs"]',
    ),
    "gives no hint": (
        "test_a_service_that_cannot_be_read_is_reported_so",
        ', hint="is the collector running?"',
        "",
    ),
}


# How a test fails: also by `pytest.raises`, or with the exception of the reader.
FAILURES = (AssertionError, OSError, pytest.fail.Exception)
# Each waits until the patience of its stage is over.
_HANGING = {"sends one request at a time", "ignores a stop"}
# Each waits for seconds, starts processes, or is another control of the same test.
_SLOW = {
    "counts a broken-off response",
    "counts a refused key",
    "explains itself in two lines",
    "sends one request at a time",
    "ignores a stop",
    "changes the bytes",
    "goes past a file that failed",
    "logs its key",
    "stores twice after a kill",
}
_SLOW_READERS = {
    "loses the last byte",
    "has one large block",
    "hashes something else",
    "leaves out a file",
    "takes a login page for an empty service",
    "gives no hint",
}


def controls(all: Mapping[str, Any], slow: set[str]) -> list[Any]:
    """The parameters of a test; those named are slow."""
    assert slow < set(all)
    return [
        pytest.param(each, id=name, marks=[pytest.mark.slow] if name in slow else [])
        for name, each in all.items()
    ]


@pytest.mark.parametrize("broken", controls(BROKEN, _SLOW))
def test_a_broken_destination_fails_the_test_that_is_meant_for_it(tmp_path: Path, broken: Broken) -> None:
    patience = 3.0 if broken in (BROKEN[name] for name in _HANGING) else None
    with (
        stage_of(tmp_path, (broken.file, broken.was, broken.now), patience=patience) as stage,
        pytest.raises(AssertionError) as failed,
    ):
        passes(stage, broken.test, broken.argument)
    print(failed.value)


@pytest.mark.slow
def test_a_destination_that_continues_its_uploads_passes(tmp_path: Path) -> None:
    """The counterpart of the one that never reads its progress."""
    noted = DONE + "            attempt.on_progress(str(done))\n"
    skips = "        start = int(batch.entries[0].progress or 0)\n        done = 0\n"
    passed = "            if done + part.size <= start and part.path:\n                done += part.size\n                continue\n"
    changes = [
        (DONE, noted),
        ("        done = 0\n", skips),
        (f"            {FILE}", f"{passed}            {FILE}"),
    ]
    kit = type("Resuming", (Conformance,), {"resumes": True})()

    with stage_of(tmp_path, *((TRANSPORT, *each) for each in changes)) as stage:
        passes(stage, "test_a_broken_off_upload_continues", kit=kit)


@pytest.mark.slow
def test_a_destination_that_must_continue_its_uploads_is_not_skipped(tmp_path: Path) -> None:
    kit = type("Resuming", (Conformance,), {"resumes": True})()

    with stage_of(tmp_path) as stage, pytest.raises(AssertionError, match="no progress was stored"):
        passes(stage, "test_a_broken_off_upload_continues", kit=kit)


@contextmanager
def readable(folder: Path, was: str = "", now: str = "") -> Iterator[Stage]:
    """A stage whose destination can be read."""
    assert was in READER
    read = (
        "def read(settings, keys):\n    from hubqueue_collector.reader import CollectorReader\n\n"
        "    return CollectorReader(settings, keys)\n\n\nDESTINATION = "
    )
    changes = [("DESTINATION = ", read), ("takes_steps=True,", "takes_steps=True,\n    read=read,")]
    with stage_of(folder, *((INIT, *each) for each in changes)) as stage:
        (folder / "site" / "hubqueue_collector" / "reader.py").write_text(
            READER.replace(was, now) if was else READER
        )
        yield stage


@pytest.mark.slow
@pytest.mark.parametrize("test", sorted({test for test, _, _ in BROKEN_READERS.values()}))
def test_a_sound_reader_passes(tmp_path: Path, test: str) -> None:
    with readable(tmp_path) as stage:
        passes(stage, test)


@pytest.mark.parametrize("broken", controls(BROKEN_READERS, _SLOW_READERS))
def test_a_broken_reader_fails_the_test_that_is_meant_for_it(
    tmp_path: Path, broken: tuple[str, str, str]
) -> None:
    test, was, now = broken
    with readable(tmp_path, was, now) as stage, pytest.raises(FAILURES) as failed:
        passes(stage, test)
    print(failed.value)
