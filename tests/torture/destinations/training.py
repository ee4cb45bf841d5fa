"""The training of a round: epochs, some of them logged twice, and checkpoints of one file and of several.

A receipt is written after each call that returned.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubqueue import start_run
from hubqueue.domain.errors import OutboxUnavailable

EPOCHS = 8
_MIB = 1 << 20
_NOISE = random.Random(1).randbytes(_MIB)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large checkpoints are, in bytes: small ones, and the range of large ones."""

    small: int
    large: tuple[int, int]
    folders: bool


@dataclass(frozen=True, slots=True)
class Saved:
    """A receipt of a checkpoint. `kind` is last, best or final, `digest` that of `digest_of`."""

    entry: int
    epoch: int
    kind: str
    digest: str


@dataclass(frozen=True, slots=True)
class Receipts:
    """What the calls of one training have acknowledged, in their order. `logged` is the union of what was logged of each epoch."""

    model: str
    calls: int
    logged: dict[str, dict[str, float]]
    saved: list[Saved]

    @classmethod
    def read(cls, path: Path) -> Receipts:
        logged: dict[str, dict[str, float]] = {}
        saved = []
        lines = path.read_text().splitlines()
        for each in map(json.loads, lines):
            if "values" in each:
                logged.setdefault(each["epoch"], {}).update(each["values"])
            else:
                saved.append(Saved(**each))
        return cls(f"{path.stem}.pt", len(lines), logged, saved)


def digest_of(files: dict[str, bytes]) -> str:
    """What identifies a checkpoint: the hash of one file, whatever its name, or of the paths and hashes of several."""
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    if len(files) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def train(folder: Path, name: str, dice: random.Random, sizes: Sizes, destination: str) -> None:
    """Run one training. Its receipts are in `NAME.jsonl`."""
    descriptor = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def receipt(**facts: Any) -> None:
        os.write(descriptor, (json.dumps(facts) + "\n").encode())

    run = start_run(f"{name}.pt", name=name, worker="none", strict=True, destination=destination)

    def log(epoch: int, **values: float) -> None:
        run.log_metrics(values, epoch=epoch)
        receipt(epoch=str(epoch), values=values)

    def save(epoch: int, kind: str, files: dict[str, bytes]) -> None:
        path = _laid(folder / f"{name}-{epoch}", files)
        entry = run.save_checkpoint(
            path, epoch=epoch, is_best=kind == "best", final=kind == "final", map=epoch / 100
        )
        receipt(entry=entry, epoch=epoch, kind=kind, digest=digest_of(files))

    for epoch in range(EPOCHS):
        log(epoch, loss=epoch + 0.5)
        if epoch % 3 == 1:
            log(epoch - 1, val=epoch + 0.25, map=epoch / 10)  # its validation has ended
        seed, large = f"{name} {epoch}", dice.randrange(*sizes.large)
        if epoch == 1:
            save(epoch, "last", {"weights.pt": content(seed, sizes.small)})
        elif epoch == 3:
            save(epoch, "best", {"weights.pt": content(seed, large)})
        elif epoch == 4:
            more = {"rank/0.bin": content(f"{seed} 0", sizes.small), "empty": b""} if sizes.folders else {}
            save(epoch, "last", {"weights.pt": content(seed, large), **more})
        elif epoch == 6 and dice.random() < 0.5:
            save(epoch, "best", {"weights.pt": content(seed, sizes.small)})
        elif epoch == EPOCHS - 1:
            save(epoch, "final", {"weights.pt": content(seed, large)})
    # A tenth of a second may be too short on a busy machine. Nothing was acknowledged then, and a worker detects the end.
    with suppress(OutboxUnavailable):
        run.finish(timeout=0)


def content(seed: str, size: int) -> bytes:
    """The same bytes for the same seed, cheaply: no MiB is like another one."""
    first = hashlib.sha256(seed.encode()).digest()
    blocks = (first + number.to_bytes(8) + _NOISE[40:] for number in range(-(-size // _MIB)))
    return b"".join(blocks)[:size]


def _laid(path: Path, files: dict[str, bytes]) -> Path:
    """Write a checkpoint as a training does: a file, or a folder of files."""
    if len(files) == 1:
        path = path.with_suffix(".pt")
        path.write_bytes(next(iter(files.values())))
        return path
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
