"""A home with two destinations, each with a hub of its own on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stage import environ_of

from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.run import Run, start_run
from hubqueue.sandbox import Sandbox

NAMES = ["one", "two"]


@dataclass
class Pair:
    """Two destinations of one home: `one` and `two`."""

    home: Path
    folder: Path
    hubs: dict[str, Sandbox]
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def one(self) -> Sandbox:
        return self.hubs["one"]

    @property
    def two(self) -> Sandbox:
        return self.hubs["two"]

    def start(self, model: str = "yolov8n.pt", **options: Any) -> Run:
        """Start a run at both, which only saves."""
        return start_run(
            model, **{"destination": NAMES, "home": self.home, "worker": "none", "strict": True, **options}
        )

    def outbox(self) -> Outbox:
        return open_outbox(self.home, environ=self.environ)

    def checkpoint(self, content: bytes = b"weights", name: str = "last.pt") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def snapshots(self) -> list[Path]:
        """The snapshots in the spool."""
        return sorted(each for each in (self.home / "spool").iterdir() if each.name[0] != ".")

    def received(self, name: str) -> tuple[dict[int, Any], list[bytes]]:
        """What a hub has: the metrics by epoch, and the contents of its checkpoints."""
        hub = self.hubs[name]
        (model,) = hub.models
        return hub.metrics(model), [each.path.read_bytes() for each in hub.checkpoints(model)]


@contextmanager
def pair_of(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two destinations, in this process's environment too."""
    with Sandbox(folder / "hub-one") as one, Sandbox(folder / "hub-two") as two:
        pair = Pair(home, folder, {"one": one, "two": two})
        home.mkdir(mode=0o700, exist_ok=True)
        tables = [
            f'[destinations.{name}]\ntype = "hub"\nurl = "{hub.url}"\n' for name, hub in pair.hubs.items()
        ]
        (home / "config.toml").write_text("\n".join(['default_destination = "one"', *tables]))
        keys = {f"HUBQUEUE_KEY_{name.upper()}": f"key-of-{name}" for name in NAMES}
        pair.environ = environ_of(home, **keys)
        for name, value in pair.environ.items():
            if os.environ.get(name) != value:
                monkeypatch.setenv(name, value)
        yield pair
