"""Another package with a destination that can be read: a folder, with a JSON file for each checkpoint.

    PATH/RUN/run.json                 the id of the run
    PATH/RUN/NAME.json                the values of a `StoredCheckpoint`
    PATH/RUN/NAME/FILES…              its files

A test sets the faults of the module: `hubqueue_shelf.FAULTS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from hubqueue.config import registry

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hubqueue.config import forms
from hubqueue.config.setting import setting
from hubqueue.destinations.base import (
    Delivered, Destination, DestinationSettings, DestinationUnavailable, Draft, Identifier, Kind, NotThere, Remote, Secret,
    StoredCheckpoint, StoredFile, StoredRun, parts_of,
)


@dataclass(frozen=True, slots=True)
class ShelfSettings(DestinationSettings):
    type: str = "shelf"
    path: Path | None = setting(forms.path(), default=None, absent="none", help="the folder")
    keep: int = setting(forms.count("checkpoints"), default=1000, help="older ones are removed")


class Faults:
    def __init__(self):
        self.breaks_after = None  # bytes of one file, then the connection is lost
        self.states = True  # whether it states hashes
        self.away = None  # what each request raises
        self.requests = []
        self.on_block = lambda: None


FAULTS = Faults()


class ShelfReader:
    def __init__(self, settings, keys):
        self._path, self._keys = settings.path, keys

    def runs(self):
        self._ask("runs")
        for each in sorted(self._path.iterdir()):
            found = json.loads((each / "run.json").read_text())
            yield StoredRun(each.name, found["id"], found["model"], "finished")

    def checkpoints(self, run):
        self._ask("checkpoints", run)
        if not (self._path / run / "run.json").exists():
            raise NotThere(f"there is no run {run}")
        return tuple(self._checkpoint(run, each) for each in sorted((self._path / run).glob("*-*.json")))

    def blocks(self, checkpoint, file, *, start=0):
        self._ask("blocks", file.path, start)
        with (self._path / file.ref).open("rb") as opened:
            opened.seek(start)
            sent = 0
            while block := opened.read(1 << 16):
                FAULTS.on_block()
                if FAULTS.breaks_after is not None and sent + len(block) > FAULTS.breaks_after:
                    raise ConnectionResetError(104, "Connection reset by peer")
                yield block
                sent += len(block)

    def hashed(self, checkpoint, file):
        self._ask("hashed", file.path)
        path = self._path / file.ref
        if not path.is_file():
            return None
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if FAULTS.states else None
        return StoredFile(file.path, path.stat().st_size, sha256, file.ref)

    def close(self):
        self._ask("close")

    def _checkpoint(self, run, path):
        found = json.loads(path.read_text())
        files = tuple(
            StoredFile(each["path"], each["size"], each["sha256"], f"{run}/{path.stem}/{each.get('ref', each['path'])}")
            for each in found.pop("files")
        )
        return StoredCheckpoint(path.stem, files, **found)

    def _ask(self, *what):
        FAULTS.requests.append(what)
        if FAULTS.away is not None and what != ("close",):
            raise FAULTS.away


class ShelfTransport:
    def __init__(self, settings, open_body):
        self._path, self._open_body = settings.path, open_body

    def send(self, batch, attempt):
        run = self._path / (batch.run.name or batch.run.id)
        run.mkdir(parents=True, exist_ok=True)
        if batch.kind is Kind.REGISTRATION:
            (run / "run.json").write_text(json.dumps({"id": batch.run.id, "model": batch.run.model}))
            return Delivered(Remote(id=run.name))
        if batch.kind is Kind.CKPT:
            (entry,) = batch.entries
            payload, snapshot, files = json.loads(entry.payload), entry.snapshot, []
            name = f"epoch-{payload['epoch']:04d}"
            for part in parts_of(snapshot, self._open_body):
                if snapshot.is_folder and not part.path:
                    break
                path = part.path or "last.pt"
                (run / name / path).parent.mkdir(parents=True, exist_ok=True)
                content = b"".join(bytes(each) for each in self._open_body(part.snapshot))
                (run / name / path).write_bytes(content)
                files.append({"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
            stored = {"files": files, "epoch": payload["epoch"], "is_folder": snapshot.is_folder}
            stored["manifest_sha256"] = snapshot.sha256 if snapshot.is_folder else None
            (run / f"{name}.json").write_text(json.dumps(stored))
        return Delivered()

    def check(self):
        return Delivered()

    def close(self):
        pass


DESTINATION = Destination(
    type="shelf",
    settings=ShelfSettings,
    secrets=SECRETS,
    lanes=(Kind.REGISTRATION, Kind.CKPT),
    identify=lambda model, settings: Identifier(filename=str(model)),
    registration=lambda model, args, *, continues: Draft(Kind.REGISTRATION, "registration", 0, "{}"),
    open=lambda settings, keys, open_body: ShelfTransport(settings, open_body),
    read=lambda settings, keys: ShelfReader(settings, keys),
    takes_folders=True,
    removes_older=lambda settings: settings.keep < 1000,
)
"""


@contextlib.contextmanager
def installed(folder: Path, *, secrets: str = "()") -> Iterator[ModuleType]:
    """Install the type `shelf` for the duration of the context; its module, with its `FAULTS`."""
    folder.mkdir(exist_ok=True)
    (folder / "hubqueue_shelf.py").write_text(CODE.replace("SECRETS", secrets))
    about = folder / "hubqueue_shelf-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hubqueue-shelf\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hubqueue.destinations]\nshelf = hubqueue_shelf:DESTINATION\n")
    sys.path.insert(0, str(folder))
    look_again()
    try:
        yield importlib.import_module("hubqueue_shelf")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("hubqueue_shelf", None)
        look_again()


def look_again() -> None:
    """Forget the installed types."""
    importlib.invalidate_caches()
    registry.declaration.cache_clear()
    registry._entry_points.cache_clear()


def configure(home: Path, path: Path, *more: str) -> None:
    """A home whose destination `lab` is a shelf."""
    home.mkdir(mode=0o700, exist_ok=True)
    lines = ["[destinations.lab]", "type = 'shelf'", f"path = '{path}'", *more]
    (home / "config.toml").write_text("\n".join(lines))


def put(run: Path, name: str, files: Mapping[str, bytes], **values: object) -> None:
    """Put a checkpoint into a run of the shelf, as it is after its delivery."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps({"id": "0bf51cd3352d", "model": "resnet50.pt"}))
    listed = []
    for path, content in files.items():
        (run / name / path).parent.mkdir(parents=True, exist_ok=True)
        (run / name / path).write_bytes(content)
        listed.append({"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    (run / f"{name}.json").write_text(json.dumps({"files": listed, **values}))


def rewrite(run: Path, name: str, **values: object) -> None:
    """Change the manifest of a checkpoint, as a person with access to the bucket can."""
    path = run / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
