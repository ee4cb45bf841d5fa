"""What the sandbox keeps, in a folder that outlives it.

    sandbox.jsonl               one line for each fact, with the answer to its Idempotency-Key
    requests.jsonl              one line for each request that ended
    models/<id>/NNNNNN-<name>   weights and staged checkpoints, byte for byte as received
    incoming/                   uploads that are still arriving

Promises: a fact and the answer that a repeated key gets are one line, so they are kept together or not at
all; after a kill the next start finds every fact that was answered. Refuses: to share its folder with a
second sandbox, to go on from a file that it did not write. It is a sandbox: it does not sync to disk, so a
power cut may cost the last moments.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox.answers import Answer, Refused
from hubqueue.sandbox.model import Fact, Model
from hubqueue.sandbox.records import RequestRecord, RunRecord
from hubqueue.sandbox.tracking import apply, begun

_VERSION = 1
_REQUESTS_IN_MEMORY = 100_000
_log = logging.getLogger("hubqueue.sandbox")


class Archive:
    """Models, runs, weights, beats and the log of requests. Every method may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Notified after every change, so that a test can wait for a state in place of sleeping.
        self.changed = threading.Condition(threading.RLock())
        self._models: dict[str, Model] = {}
        self._gone: set[str] = set()
        self._runs: dict[str, RunRecord] = {}
        self._receipts: dict[str, Answer] = {}
        self._requests: deque[RequestRecord] = deque(maxlen=_REQUESTS_IN_MEMORY)
        self._journal: BinaryIO | None = None
        self._log_file: BinaryIO | None = None
        self._lock: FileLock | None = None

    # --- opening and closing

    def open(self) -> None:
        """Take the folder and read back what is in it.

        Raises `ConfigError` when another sandbox has it, when it cannot be written, or when its files are not
        a sandbox's.
        """
        with self.changed:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                # Not thread-local: whoever stops the sandbox need not be who started it.
                lock = FileLock(self.folder / ".lock", thread_local=False)
                lock.acquire(timeout=0)
            except Timeout:
                raise ConfigError(
                    (f"another sandbox is using {self.folder}",),
                    hint="stop it, or give this one its own --data folder",
                ) from None
            except OSError as error:
                raise ConfigError(
                    (f"cannot keep anything in {self.folder}: {error.strerror}",),
                    hint="give a folder that can be written: --data DIR",
                ) from error
            self._lock = lock
            try:
                self._read_back()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let the folder go. What is in memory can still be read; nothing more is kept."""
        with self.changed:
            for file in (self._journal, self._log_file):
                if file is not None:
                    file.close()
            self._journal = self._log_file = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            self.changed.notify_all()

    def _read_back(self) -> None:
        self._models.clear()
        self._gone.clear()
        self._runs.clear()
        self._receipts.clear()
        self._requests.clear()
        shutil.rmtree(self.folder / "incoming", ignore_errors=True)
        (self.folder / "incoming").mkdir(mode=0o700)
        (self.folder / "models").mkdir(mode=0o700, exist_ok=True)
        journal = self.folder / "sandbox.jsonl"
        lines = _whole_lines(journal)
        if not lines:
            lines = [b'{"hubqueue_sandbox": %d}' % _VERSION]
            with _opened(journal, "wb") as file:
                _append(file, lines[0])
        if _parsed(lines[0]).get("hubqueue_sandbox") != _VERSION:
            raise _alien(journal, 1)
        for number, line in enumerate(lines[1:], start=2):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise _alien(journal, number) from None
        for line in _whole_lines(self.folder / "requests.jsonl")[-_REQUESTS_IN_MEMORY:]:
            try:
                self._requests.append(_request_from(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                _log.warning("a line of requests.jsonl cannot be read; it is left out")
        self._journal = _opened(journal, "ab")
        self._log_file = _opened(self.folder / "requests.jsonl", "ab")

    # --- models

    def models(self) -> list[Model]:
        """Every model that was not deleted, oldest first."""
        with self.changed:
            return list(self._models.values())

    def model(self, model_id: str) -> Model | None:
        """The model, or None when it does not exist or was deleted."""
        with self.changed:
            return self._models.get(model_id)

    def is_taken(self, model_id: str) -> bool:
        """Whether the id was ever given out."""
        with self.changed:
            return model_id in self._models or model_id in self._gone or model_id in self._runs

    def runs(self) -> list[RunRecord]:
        """Every training of Platform, oldest first. To be read under `changed`: they go on changing."""
        with self.changed:
            return list(self._runs.values())

    def run(self, model_id: str) -> RunRecord | None:
        """The training of this model id, or None. To be read under `changed`."""
        with self.changed:
            return self._runs.get(model_id)

    def next_run_id(self) -> int:
        """The id that the next run gets: no other has it, and it is higher than all others."""
        with self.changed:
            return sum(len(run.run_ids) for run in self._runs.values()) + 1

    def cancel(self, model_id: str) -> bool:
        """Cancel a training of Platform. False when there is none of this id."""
        with self.changed:
            if model_id not in self._runs:
                return False
            fact = {"fact": "cancelled", "model": model_id, "at": datetime.now(UTC).isoformat()}
            self.keep(None, lambda: (fact, Answer(200)))
            return True

    def keep(self, receipt: str | None, make: Callable[[], tuple[Fact, Answer]]) -> tuple[Answer, bool]:
        """Keep what `make` says and give its answer, or the one already given for `receipt` (and True).

        `make` runs under the lock, so what it looks up cannot change before its fact is kept. Raises
        `Refused` when the archive is closed or the disk does not take the fact; then nothing is kept.
        """
        with self.changed:
            if receipt is not None and receipt in self._receipts:
                return self._receipts[receipt], True
            if self._journal is None:
                raise Refused(503, "the sandbox is stopping", close=True)
            fact, answer = make()
            if receipt is not None:
                fact = fact | {"receipt": receipt, "status": answer.status, "answer": answer.body.decode()}
            self._write(fact)
            self._apply(fact)
            self.changed.notify_all()
            return answer, False

    def has_receipt(self, receipt: str | None) -> bool:
        """Whether a request with this receipt was answered before."""
        with self.changed:
            return receipt in self._receipts

    def _write(self, fact: Fact) -> None:
        assert self._journal is not None
        try:
            _append(self._journal, json.dumps(fact).encode())
        except OSError as error:
            raise Refused(507, f"the sandbox cannot keep this: {error.strerror}") from error

    def _apply(self, fact: Fact) -> None:
        model_id = fact["model"]
        if "receipt" in fact:
            self._receipts[fact["receipt"]] = Answer(fact["status"], fact["answer"].encode())
        match fact["fact"]:
            case "created":
                at = datetime.fromisoformat(fact["at"])
                self._models[model_id] = Model(id=model_id, created_at=at, given=fact["given"])
            case "deleted":
                self._models.pop(model_id, None)
                self._gone.add(model_id)
                if fact["hard"]:
                    shutil.rmtree(self.weights_folder(model_id), ignore_errors=True)
            case "tracked":
                self._runs[model_id] = begun(fact)
                apply(fact, self._runs[model_id], self.weights_folder(model_id))
            case "event" | "url" | "staged" | "cancelled":
                apply(fact, self._runs[model_id], self.weights_folder(model_id))
            case _:
                self._models[model_id].apply(fact, self.weights_folder(model_id))

    # --- files

    def incoming(self) -> Path:
        """A path for an upload that is arriving. A start clears what an earlier one left."""
        return self.folder / "incoming" / uuid.uuid4().hex

    def weights_folder(self, model_id: str) -> Path:
        """Where the weights of a model are."""
        return self.folder / "models" / model_id

    # --- requests

    def note(self, record: RequestRecord) -> None:
        """A request line was read."""
        with self.changed:
            self._requests.append(record)
            self.changed.notify_all()

    def ended(self, record: RequestRecord) -> None:
        """The request is over: its record is complete."""
        with self.changed:
            record.ended = True
            if self._log_file is not None:
                line = dataclasses.asdict(record) | {"at": record.at.isoformat()}
                try:
                    _append(self._log_file, json.dumps(line).encode())
                except OSError as error:
                    _log.warning("a request is not logged: %s", error.strerror)
            self.changed.notify_all()

    def requests(self) -> list[RequestRecord]:
        """Copies of the records (the last 100,000), in the order of their request lines."""
        with self.changed:
            return [dataclasses.replace(record) for record in self._requests]


def opened_privately(path: str, flags: int) -> int:
    """An `opener` for files that only this user may read, whatever the umask."""
    return os.open(path, flags, 0o600)


def _opened(path: Path, mode: str) -> BinaryIO:
    # Unbuffered: what was written has left the process, and a kill cannot lose it.
    return open(path, mode, buffering=0, opener=opened_privately)  # type: ignore[return-value]


def _append(file: BinaryIO, line: bytes) -> None:
    end = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(line + b"\n")
        while left:
            left = left[file.write(left) :]
    except OSError:
        # Half a line in the middle would make the next start refuse the whole file.
        os.ftruncate(file.fileno(), end)
        raise


def _whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file; a tail that a kill left half written is cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return whole.splitlines()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alien(path: Path, line: int) -> ConfigError:
    return ConfigError(
        (f"line {line} of {path} was not written by this sandbox",),
        hint="keep the file, and give another --data folder",
    )


def _request_from(line: dict[str, Any]) -> RequestRecord:
    line = line | {"at": datetime.fromisoformat(line["at"]), "epochs": tuple(line["epochs"])}
    return RequestRecord(**line)
