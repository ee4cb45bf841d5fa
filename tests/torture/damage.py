"""Damaged databases: flipped bits, zeroed and swapped pages, cut ends, foreign files.

Each is a copy of one outbox with known contents, damaged once. Then the commands of a person follow: `hubqueue check`,
and `hubqueue check --set-aside` if it reports damage. Counted: detected damage, recovered entries.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stage import ack, keys, must_claim, new_run
from torture.frame import Report, new_report

from hubqueue.domain.drafts import Checkpoint, ckpt_draft, metrics_draft
from hubqueue.domain.entry import Kind
from hubqueue.outbox.database.sqlite import asides, load_driver, report_of
from hubqueue.outbox.outbox import open_outbox
from hubqueue.testing import FakeClock
from hubqueue.worker.check import Finding, examine

SENTENCE = (
    "a damaged outbox never passes for a healthy one with fewer entries: the file stays unchanged, the entries that can be "
    "read are owed by a new outbox, and the tool reports it"
)
SCALES = {"quick": 60, "normal": 600, "full": 5000}
_PAGE = 4096
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Known:
    """The sound outbox, and what it owes: payloads by run, kind and key."""

    database: bytes
    spool: dict[str, bytes]
    owed: dict[tuple[str, str, str], str]


def main(argv: list[str] | None = None) -> int:
    """Damage copies and count; 1 if the sentence is false."""
    report = new_report("damage", SENTENCE, argv)
    dice = random.Random(report.seed)
    parent = _SHARED if _SHARED.is_dir() and os.access(_SHARED, os.W_OK) else None
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-damage-", dir=parent) as folder:
        known = _make(Path(folder) / "sound")
        seen: Counter[str] = Counter()
        shares: dict[str, list[float]] = {kind: [] for kind in DAMAGES}
        for number in range(SCALES[report.scale]):
            kind = dice.choice(list(DAMAGES))
            damaged = DAMAGES[kind](dice, known.database)
            shares[kind] += _judge(
                report, known, Path(folder) / "home", f"number {number} ({kind})", damaged, seen
            )
        total = SCALES[report.scale]
        report.write(
            f"{total} damaged databases of {len(known.database)} bytes with {len(known.owed)} owed entries each"
        )
        report.write("; ".join(f"{name} {count}" for name, count in sorted(seen.items())))
        for kind, saved in shares.items():
            if saved:
                share = 100 * sum(saved) / len(saved)
                report.write(f"{kind}: {len(saved)} set aside, {share:.1f} % of what they owed was recovered")
        owed = seen["entries owed by those set aside"]
        if owed:
            report.write(
                f"recovered {100 * seen['entries recovered'] / owed:.1f} % of what was owed by those that were set aside"
            )
        report.require(
            seen["detected"] > total // 3, "hardly any damage was detected: the damage is too small"
        )
        report.require(
            seen["entries recovered"] > owed // 2, "less than half of what was owed could be recovered"
        )
    return report.exit_code


def _make(home: Path) -> Known:
    """An outbox with three runs: delivered, pending and dead entries, checkpoints with their snapshots."""
    clock, owed = FakeClock(), {}
    with open_outbox(home, environ={}, clock=clock) as outbox:
        for number in range(3):
            run = new_run(outbox, remote_id=f"model-{number}")
            for epoch in range(150):
                text = json.dumps({"loss": epoch + 0.5, "note": "x" * (epoch % 7) * 40})
                outbox.entries.enqueue(run, metrics_draft(text, epoch))
                owed[run, "metrics", str(epoch)] = text
                if epoch == 40:
                    lease = must_claim(outbox, Kind.METRICS)
                    ack(outbox, lease)
                    for key in keys(lease):
                        del owed[run, "metrics", key]
                    clock.advance(10)
            source = home / "best.pt"
            source.write_bytes(b"weights " * 1000 * (number + 1))
            snapshot = outbox.spool.take(source, label=f"{run}-9")
            best = Checkpoint(source, 9, is_best=True, map=0.5, final=True)
            draft = ckpt_draft(best, snapshot, now=outbox.database.now())
            outbox.entries.enqueue(run, draft)
            owed[run, "ckpt", "final"] = draft.payload
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    spool = {each.name: each.read_bytes() for each in (home / "spool").glob("*.ckpt")}
    return Known((home / "outbox.db").read_bytes(), spool, owed)


def _judge(
    report: Report, known: Known, home: Path, where: str, damaged: bytes, seen: Counter[str]
) -> list[float]:
    """Check one damaged outbox. Returns the share of its owed entries that was recovered, if it was set aside."""
    shutil.rmtree(home, ignore_errors=True)
    (home / "spool").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    for name, content in known.spool.items():
        (home / "spool" / name).write_bytes(content)
    path = home / "outbox.db"
    path.write_bytes(damaged)
    findings = _found(home, set_aside=False)
    if not findings:
        owed = _owed(home)
        missing = [each for each in known.owed if each not in owed]
        report.require(not missing, f"{where}: nothing is reported, and {len(missing)} entries are missing")
        seen["not detected, nothing missing"] += 1
        seen["of these with another payload"] += owed != known.owed
        return []
    seen["detected"] += 1
    before = path.read_bytes()  # opening a file that can still be opened may record the boot of the machine
    foreign_file = any("another program" in each.detail for each in findings)
    _found(home, set_aside=True)
    kept = asides(path)
    if foreign_file:
        report.require(path.read_bytes() == damaged, f"{where}: a foreign file was changed")
        seen["foreign, refused and not changed"] += 1
        return []
    if not kept:
        # Its structure is intact: every finding names its entry.
        named = all(
            each.what in ("accounting", "spool") or "payload of entry" in each.detail for each in findings
        )
        report.require(named, f"{where}: {findings[0].detail}, and it stays in use")
        seen["intact except for named entries or a miscount"] += 1
        return []
    report.require(kept[0].read_bytes() == before, f"{where}: the damaged file was changed")
    report.require(report_of(kept[0]) is not None, f"{where}: nothing is reported about what was recovered")
    report.require(bool(_found(home, set_aside=False)), f"{where}: the new outbox passes for healthy")
    recovered = _owed(home)
    foreign = [each for each in recovered if each not in known.owed]
    seen["set aside"] += 1
    if "foreign" not in where:  # a foreign file holds nothing of the outbox
        seen["entries owed by those set aside"] += len(known.owed)
    whole = sum(known.owed.get(each) == text for each, text in recovered.items())
    seen["entries recovered"] += whole
    seen["entries recovered with another payload"] += sum(
        each in known.owed and known.owed[each] != text for each, text in recovered.items()
    )
    seen["entries that were owed no more"] += len(foreign)
    return [whole / len(known.owed)]


def _found(home: Path, *, set_aside: bool) -> list[Finding]:
    """The problems that `hubqueue check` finds in the outbox (API keys are not part of this)."""
    found = examine(str(home), None, online=False, set_aside=set_aside)
    return [each for each in found if not each.ok and each.what != "credentials"]


def _owed(home: Path) -> dict[tuple[str, str, str], str]:
    """The owed entries of the outbox, by run, kind and key."""
    query = """
        SELECT run_id, kind, key, payload FROM entries JOIN lanes ON lanes.id = lane_id
        WHERE state IN ('pending', 'dead')
    """
    connection = load_driver("auto").connect(str(home / "outbox.db"))
    connection.text_factory = lambda content: content.decode("utf-8", "replace")
    try:
        return {(run, kind, key): payload for run, kind, key, payload in connection.execute(query)}
    finally:
        connection.close()


# The kinds of damage.


def _flipped(dice: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(dice.choice((1, 4, 30, 300))):
        found[dice.randrange(100, len(found))] ^= 1 << dice.randrange(8)
    return bytes(found)


def _zeroed(dice: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(dice.choice((1, 2, 8))):
        start = dice.randrange(len(found) // _PAGE) * _PAGE
        found[start : start + _PAGE] = bytes(_PAGE)
    return bytes(found)


def _swapped(dice: random.Random, data: bytes) -> bytes:
    first, second = (dice.randrange(len(data) // _PAGE) * _PAGE for _ in range(2))
    found = bytearray(data)
    found[first : first + _PAGE], found[second : second + _PAGE] = (
        data[second : second + _PAGE],
        data[first : first + _PAGE],
    )
    return bytes(found)


def _cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(1, len(data))]


def _garbage(dice: random.Random, data: bytes) -> bytes:
    start = dice.randrange(len(data))
    length = dice.choice((16, 512, 5000, 100_000))
    return (data[:start] + dice.randbytes(length) + data[start + length :])[: len(data)]


def _foreign(dice: random.Random, _data: bytes) -> bytes:
    if dice.random() < 0.5:
        return dice.randbytes(dice.randrange(1, 20_000))
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "theirs.db")
        connection.execute("CREATE TABLE theirs (a)")
        connection.commit()
        connection.close()
        return (Path(folder) / "theirs.db").read_bytes()


DAMAGES = {
    "flipped bytes": _flipped,
    "zeroed pages": _zeroed,
    "swapped pages": _swapped,
    "cut": _cut,
    "garbage": _garbage,
    "foreign": _foreign,
}

if __name__ == "__main__":
    sys.exit(main())
