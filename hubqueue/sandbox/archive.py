"""What the sandbox stores, in a folder that outlives it.

    sandbox.jsonl               one line for each fact, with the response to its Idempotency-Key
    requests.jsonl              one line for each request that ended
    models/<id>/NNNNNN-<name>   checkpoints, byte for byte as received
    incoming/                   uploads that are still arriving

Each fact belongs to the keeper that lists its name: a service, whose state is built from facts alone.

Promises: a fact and the response that a repeated key gets are one line, so they are stored together or not at
all; after a kill the next start finds every fact that was acknowledged. Refuses to share its folder with a
second sandbox, and to append to a file that it did not write. It does not sync to disk, so a power cut may lose
the last facts.
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
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from filelock import FileLock, Timeout

from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox.request import RequestRecord
from hubqueue.sandbox.response import Refused, Response

_VERSION = 1
_REQUESTS_IN_MEMORY = 100_000
_log = logging.getLogger("hubqueue.sandbox")

Fact = dict[str, Any]


class Keeper(Protocol):
    """The owner of some of the facts. Called under `Archive.changed`."""

    @property
    def facts(self) -> frozenset[str]:
        """The names of the facts that it keeps."""

    def reset(self) -> None:
        """Clear the state. Called before the facts are read back."""

    def apply(self, fact: Fact) -> None:
        """Apply one fact."""


class Archive:
    """Facts, checkpoints and the log of requests. Every method may be called from any thread.

    Raises ValueError when two keepers have the same fact.
    """

    def __init__(self, folder: Path, keepers: Sequence[Keeper] = ()) -> None:
        self.folder = folder
        self._all = tuple(keepers)
        self._keepers = {fact: keeper for keeper in keepers for fact in keeper.facts}
        if len(self._keepers) < sum(len(keeper.facts) for keeper in keepers):
            raise ValueError("two services keep the same fact")
        # Notified after every change, so that a test can wait for a state without sleeping.
        self.changed = threading.Condition(threading.RLock())
        self._receipts: dict[str, Response] = {}
        self._requests: deque[RequestRecord] = deque(maxlen=_REQUESTS_IN_MEMORY)
        self._journal: BinaryIO | None = None
        self._log_file: BinaryIO | None = None
        self._lock: FileLock | None = None

    # --- opening and closing

    def open(self) -> None:
        """Lock the folder and read its contents back.

        Raises `ConfigError` if another sandbox uses the folder, if it cannot be written, or if its files are not
        a sandbox's.
        """
        with self.changed:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                # Not thread-local: another thread may stop the sandbox.
                lock = FileLock(self.folder / ".lock", thread_local=False)
                lock.acquire(timeout=0)
            except Timeout:
                raise ConfigError(
                    (f"another sandbox is using {self.folder}",),
                    hint="stop it, or give this one its own --data folder",
                ) from None
            except OSError as error:
                raise ConfigError(
                    (f"cannot write to {self.folder}: {error.strerror}",),
                    hint="choose a writable folder: --data DIR",
                ) from error
            self._lock = lock
            try:
                self._read_back()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Release the folder. What is in memory can still be read; nothing more is stored."""
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
        for keeper in self._all:
            keeper.reset()
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
                _log.warning("a line of requests.jsonl cannot be read; it is skipped")
        self._journal = _opened(journal, "ab")
        self._log_file = _opened(self.folder / "requests.jsonl", "ab")

    # --- facts

    def keep(self, receipt: str | None, make: Callable[[], tuple[Fact, Response]]) -> tuple[Response, bool]:
        """Store the fact of `make` and return its response, or the earlier response for `receipt` (and True).

        `make` runs under the lock, so the state that it reads cannot change before its fact is stored. Raises
        `Refused` if the archive is closed or the fact cannot be written; then nothing is stored.
        """
        with self.changed:
            if receipt is not None and receipt in self._receipts:
                return self._receipts[receipt], True
            if self._journal is None:
                raise Refused(503, "the sandbox is stopping", close=True)
            fact, response = make()
            if receipt is not None:
                fact = fact | {
                    "receipt": receipt,
                    "status": response.status,
                    "answer": response.body.decode(),
                }
            self._write(fact)
            self._apply(fact)
            self.changed.notify_all()
            return response, False

    def has_receipt(self, receipt: str | None) -> bool:
        """Whether a request with this receipt has already got its response."""
        with self.changed:
            return receipt in self._receipts

    def _write(self, fact: Fact) -> None:
        assert self._journal is not None
        try:
            _append(self._journal, json.dumps(fact).encode())
        except OSError as error:
            raise Refused(507, f"the sandbox cannot store this: {error.strerror}") from error

    def _apply(self, fact: Fact) -> None:
        if "receipt" in fact:
            self._receipts[fact["receipt"]] = Response(fact["status"], fact["answer"].encode())
        self._keepers[fact["fact"]].apply(fact)

    # --- files

    def incoming(self) -> Path:
        """A path for an upload that is arriving. A start deletes what an earlier process left."""
        return self.folder / "incoming" / uuid.uuid4().hex

    def folder_of(self, model_id: str) -> Path:
        """The folder for the checkpoints of a model or a run. It need not exist."""
        return self.folder / "models" / model_id

    def store(self, arriving: Path, model_id: str, number: int, name: str) -> str:
        """Move a complete upload to the checkpoints of a model. Returns its file name there."""
        folder = self.folder_of(model_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        file = f"{number:06d}-{name}"
        arriving.replace(folder / file)
        return file

    # --- requests

    def note(self, record: RequestRecord) -> None:
        """Note a request after its request line was read."""
        with self.changed:
            self._requests.append(record)
            self.changed.notify_all()

    def ended(self, record: RequestRecord) -> None:
        """Note that a request has ended and its record is complete."""
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

    def last_requests(self, most: int, *, about: str | None = None) -> list[RequestRecord]:
        """Copies of the last records, the newest first; with `about`, only those of this model or run."""
        with self.changed:
            wanted = (each for each in reversed(self._requests) if about in (None, each.model_id))
            return [dataclasses.replace(record) for record in islice(wanted, most)]


def opened_privately(path: str, flags: int) -> int:
    """An `opener` for files that only this user may read, regardless of the umask."""
    return os.open(path, flags, 0o600)


def _opened(path: Path, mode: str) -> BinaryIO:
    # Unbuffered: written data has left the process, and a kill cannot lose it.
    return open(path, mode, buffering=0, opener=opened_privately)  # type: ignore[return-value]


def _append(file: BinaryIO, line: bytes) -> None:
    end = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(line + b"\n")
        while left:
            left = left[file.write(left) :]
    except OSError:
        # A partial line in the middle would make the next start refuse the whole file.
        os.ftruncate(file.fileno(), end)
        raise


def _whole_lines(path: Path) -> list[bytes]:
    """The complete lines of a file. An incomplete last line, left by a kill, is cut off."""
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
        hint="keep the file, and choose another --data folder",
    )


def _request_from(line: dict[str, Any]) -> RequestRecord:
    line = line | {"at": datetime.fromisoformat(line["at"]), "epochs": tuple(line["epochs"])}
    return RequestRecord(**line)
