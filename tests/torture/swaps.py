"""The file under a living training and a living worker is deleted, replaced, or restored from an older copy.

What the training acknowledges afterwards must reach the hub. What it acknowledged before may be in the lost file: each of
those must have arrived too, or `finish` counts it as unsaved and one line of the log says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from stage import end, environ_of, hubqueue, start_worker, wait_until
from torture.puppet import Puppet, Receipt, now, pause

from hubqueue.sandbox import Sandbox

_FILES = ("outbox.db", "outbox.db-wal", "outbox.db-shm")
_EPOCHS = 12  # acknowledged before a swap, and after it
# A control: a process that never looks at the file again, as before 2026-12.
_BLIND = """
from hubqueue.outbox.database.database import Database
Database.was_replaced = lambda self: False
"""


@dataclass(slots=True)
class Swapped:
    """The counts over homes. `lost` were acknowledged before a swap and reported as lost, `silent` were not reported."""

    swaps: int = 0
    before: int = 0
    after: int = 0
    missing: int = 0
    altered: int = 0
    lost: int = 0
    silent: int = 0
    foreign: int = 0
    foreign_missing: int = 0
    pending: int = 0
    homes: list[str] = field(default_factory=list)
    """The homes in which something was wrong, and how they were swapped."""

    def add(self, other: Swapped) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def _delete_home(home: Path, _other: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)  # a process may have written into it meanwhile


def _delete_files(home: Path, _other: Path) -> None:
    for name in _FILES:
        (home / name).unlink(missing_ok=True)


def _delete_log(home: Path, _other: Path) -> None:
    for name in _FILES[1:]:
        (home / name).unlink(missing_ok=True)


def _delete_locks(home: Path, _other: Path) -> None:
    """What a tool that cleans a folder for temporary files does: it deletes what nobody has written for days."""
    shutil.rmtree(home / "locks", ignore_errors=True)


def _move_away(home: Path, _other: Path) -> None:
    home.rename(home.with_name("moved"))


def _replace_home(home: Path, other: Path) -> None:
    home.rename(home.with_name("moved"))
    shutil.copytree(other, home)


def _copy_over(home: Path, other: Path) -> None:
    """As `cp` does: into the same file, while it is open."""
    with open(other / "outbox.db", "rb") as source, open(home / "outbox.db", "r+b") as target:
        target.truncate(0)
        shutil.copyfileobj(source, target)


def _copy_over_without_log(home: Path, other: Path) -> None:
    _copy_over(home, other)
    _delete_log(home, other)


def _replace_file(home: Path, other: Path) -> None:
    """As `rsync --delete` does: the file is renamed into place, the files beside it are deleted."""
    arriving = home / ".outbox.db.arriving"
    shutil.copyfile(other / "outbox.db", arriving)
    for name in _FILES[1:]:
        (home / name).unlink(missing_ok=True)
    arriving.replace(home / "outbox.db")


SWAPS: dict[str, tuple[Callable[[Path, Path], None], str | None]] = {
    "home deleted": (_delete_home, None),
    "files deleted": (_delete_files, None),
    "log deleted": (_delete_log, None),
    "locks deleted": (_delete_locks, None),
    "home moved": (_move_away, None),
    "home replaced": (_replace_home, "another"),
    "file replaced": (_replace_file, "another"),
    "home restored": (_replace_home, "older"),
    "file restored": (_replace_file, "older"),
    "file copied over": (_copy_over, "older"),
    "file copied over, log deleted": (_copy_over_without_log, "older"),
}
"""Each swap, and which outbox replaces the old one."""


def swap_round(seed: str, folder: Path, names: tuple[str, ...], *, blind: bool = False) -> Swapped:
    """One home with a training and a worker, and these swaps one after the other."""
    dice, counted = random.Random(seed), Swapped()
    folder.mkdir()
    home = folder / "home"
    with Sandbox(folder / "hub") as hub:
        environ = environ_of(
            home,
            hub.url,
            HUBQUEUE_RATE_LIMITS__METRICS="0",
            HUBQUEUE_RATE_LIMITS__CKPT="0",
            HUBQUEUE_RETRY__BASE="0.05",
            HUBQUEUE_RETRY__CAP="0.05",
        )
        guests: list[Puppet] = []
        if any(SWAPS[name][1] == "another" for name in names):
            guests.append(_another(folder, environ))
        mode = "auto" if dice.random() < 0.2 else "none"
        training = Puppet(folder, "training", environ, worker=mode, defect=_BLIND if blind else "")
        workers = [start_worker(environ)] if mode == "none" else []
        content = dice.randbytes(20_000)
        (folder / "best.pt").write_bytes(content)
        saving = ("save", folder / "best.pt", hashlib.sha256(content).hexdigest(), "final")
        is_early, is_away = dice.random() < 0.5, blind or dice.random() < 0.6
        if is_away:
            hub.fail("any:503:1")  # so that everything waits when the file is swapped
        if is_early:
            training.do(*saving)
        training.begin("flow")
        swapped = _swap(home, folder, training, names, dice, counted)
        hub.heal()
        workers += (
            [start_worker(environ)] if mode == "none" else []
        )  # the first one ends when its file is gone
        training.begin(*(("log", 1) if is_early else saving))
        training.done()  # of the flow
        training.done()
        left = training.do("finish", "finished", "0")
        training.end("return")
        for each in workers:
            end(each)
        hubqueue(environ, "drain", "--timeout", "60")
        totals = json.loads(hubqueue(environ, "status", "--json").stdout)["totals"]
        counted.pending = totals["pending"]
        arrived = _arrived(hub)
        for receipt in training.receipts():
            _judge(receipt, arrived.get("training", _Arrived()), swapped, counted)
        # What was lost must have been reported: in the log, and by `finish`.
        said = int(left["unsaved"]) if any(line.startswith("ERROR") for line in training.log()) else 0
        counted.silent = max(0, counted.lost - said)
        for guest in guests:
            for receipt in guest.receipts():
                counted.foreign += 1
                counted.foreign_missing += receipt.epoch not in arrived.get(guest.name, _Arrived()).epochs
    if counted.missing or counted.silent or counted.pending or counted.foreign_missing:
        counted.homes.append(f"{seed}: {', '.join(names)} ({mode}; {left})")
    shutil.rmtree(folder, ignore_errors=True)
    return counted


def _another(folder: Path, environ: dict[str, str]) -> Puppet:
    """Another home, whose training has ended and whose entries wait."""
    guest = Puppet(folder, "guest", environ | {"HUBQUEUE_HOME": str(folder / "of-guest")})
    guest.do("log", 5)
    guest.end("finish")
    _copy(folder / "of-guest", folder / "another")
    return guest


def _swap(
    home: Path, folder: Path, training: Puppet, names: tuple[str, ...], dice: random.Random, counted: Swapped
) -> int:
    """Carry out the swaps, while the training logs. Returns when the last one was over."""
    over = 0
    for name in names:
        _wait_for(training, _EPOCHS, since=over)
        act, taken = SWAPS[name]
        other = folder / (taken or "none")
        if taken == "older":
            shutil.rmtree(other, ignore_errors=True)
            _copy(home, other)
            _wait_for(training, _EPOCHS, since=now())
        pause(dice.uniform(0.0, 0.05))
        shutil.rmtree(home.with_name("moved"), ignore_errors=True)
        act(home, other)
        over = now()
        counted.swaps += 1
    _wait_for(training, _EPOCHS, since=over)
    return over


def _wait_for(training: Puppet, epochs: int, *, since: int) -> None:
    wait_until(lambda: sum(each.began >= since for each in training.receipts()) >= epochs)


def _copy(home: Path, target: Path) -> None:
    """A backup of a home that is in use: a consistent copy of its database, and its other files."""
    target.mkdir(mode=0o700)
    source, copy = sqlite3.connect(home / "outbox.db"), sqlite3.connect(target / "outbox.db")
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
    os.chmod(target / "outbox.db", 0o600)
    shutil.copytree(home / "spool", target / "spool")


@dataclass(slots=True)
class _Arrived:
    epochs: dict[int, float]
    finals: list[str]

    def __init__(self) -> None:
        self.epochs, self.finals = {}, []


def _arrived(hub: Sandbox) -> dict[str, _Arrived]:
    """What the hub has, by the name of the training. A run that was begun again may have two models."""
    found: dict[str, _Arrived] = {}
    for model_id in hub.models:
        known = found.setdefault(hub.model(model_id)["meta"]["name"].removesuffix(".yaml"), _Arrived())
        known.epochs |= {epoch: values.get("loss") for epoch, values in hub.metrics(model_id).items()}
        known.finals += [each.sha256 for each in hub.checkpoints(model_id) if each.type == "final"]
    return found


def _judge(receipt: Receipt, arrived: _Arrived, swapped: int, counted: Swapped) -> None:
    is_after = receipt.began >= swapped
    counted.after += is_after
    counted.before += not is_after
    if receipt.what == "epoch":
        assert receipt.epoch is not None
        is_there = receipt.epoch in arrived.epochs
        counted.altered += is_there and arrived.epochs[receipt.epoch] != receipt.loss
    else:
        is_there = receipt.sha256 in arrived.finals
    counted.missing += is_after and not is_there
    counted.lost += not is_after and not is_there
