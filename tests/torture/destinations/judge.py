"""Compares what was acknowledged with what a destination has: by what is there, and by hubqueue's own `verify`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torture.destinations.target import Batch, Target, There
from torture.destinations.training import Receipts, digest_of

from hubqueue.config.registry import declaration
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.outbox import open_outbox
from hubqueue.retrieval.verify import verify
from hubqueue.testing.conformance.service import Received


@dataclass(slots=True)
class Tally:
    """The counts over all rounds of a destination. Lists have a text for each case."""

    rounds: int = 0
    kills: int = 0
    trainer_kills: int = 0
    acknowledged: int = 0
    verified: int = 0
    bytes: int = 0
    regrouped: int = 0
    missing: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    sent: int = 0
    wrong: list[str] = field(default_factory=list)
    points: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, slots=True)
class _Outbox:
    """What the outbox says in the end: its runs by model, its checkpoints by id, and what is not delivered or superseded."""

    runs: Mapping[str, Mapping[str, Any]]
    checkpoints: Mapping[int, Mapping[str, Any]]
    unsettled: list[str]

    @classmethod
    def read(cls) -> _Outbox:
        with open_outbox() as outbox:
            runs = {row["model"]: row for row in outbox.stats.runs(finished=None)}
            rows = outbox.stats.entries(limit=100_000)
            counted = outbox.stats.totals()
        usual = (State.DELIVERED, State.SUPERSEDED)
        unsettled = [f"entry {each['id']} ({each['kind']}) is {each['state']}" for each in rows]
        unsettled = [text for text, each in zip(unsettled, rows, strict=True) if each["state"] not in usual]
        if counted["enqueued"] != sum(counted[each] for each in ("pending", "dead", "cancelled", *usual)):
            unsettled.append(f"the entries do not add up: {counted}")
        return cls(runs, {each["id"]: each for each in rows if each["kind"] == Kind.CKPT}, unsettled)


def judge(target: Target, folder: Path, there: There) -> Tally:
    """Compare the receipts in a folder with what is there. For a process of its own, in the environment of the round."""
    tally, outbox = (
        Tally(left=there.left, again=there.again, sent=there.sent, wrong=there.wrong),
        _Outbox.read(),
    )
    tally.wrong += outbox.unsettled
    tally.twice += there.twice
    declared = declaration(target.type)
    known = {str(row["remote_id"] or row["id"]) for row in outbox.runs.values()}
    strange = [name for name, each in there.runs.items() if name not in known]
    empty = [name for name in strange if not there.runs[name].metrics and not there.runs[name].checkpoints]
    if len(strange) > len(empty) or len(empty) > target.twins * len(known):
        tally.twice += [f"the run {name}" for name in strange]
    for path in sorted(folder.glob("writer-*.jsonl")):
        receipts = Receipts.read(path)
        row = outbox.runs.get(receipts.model)
        tally.acknowledged += receipts.calls
        if row is None:
            tally.missing += ["a run"] * bool(receipts.calls)
            continue
        name = str(row["remote_id"] or row["id"])
        received = there.runs.get(name, Received())
        _compare_metrics(tally, receipts, received)
        batches = there.batches.get(name, [[each] for each in received.metrics])
        _compare_batches(tally, receipts.model, batches)
        _compare_checkpoints(tally, receipts, received, outbox)
        _compare_newest(tally, receipts, there.newest.get(name), outbox)
        if Kind.COMPLETION in declared.lanes and list(received.ends) != [_end_of(target, row["state"])]:
            tally.wrong.append(f"{receipts.model}: the run is {row['state']}, the ends are {received.ends}")
        if declared.read is not None and row["remote_id"]:
            _verify(tally, target, str(row["remote_id"]))
    return tally


def _compare_metrics(tally: Tally, receipts: Receipts, received: Received) -> None:
    stored = {epoch: dict(values) for epoch, values in received.metrics}
    for epoch, values in receipts.logged.items():
        for name, value in values.items():
            found = stored.get(epoch, {}).get(name)
            if found is None:
                tally.missing.append(f"{receipts.model}: {name} of epoch {epoch}")
            elif found != value:
                tally.altered.append(f"{receipts.model}: {name} of epoch {epoch}")


def _compare_batches(tally: Tally, model: str, batches: Sequence[Batch]) -> None:
    """Count the epochs that are there twice with the same values.

    A retry carries the same batch, unless newer values of an epoch have arrived before it: then it is another batch, with
    another key, and what was beside that epoch may be stored again. That is `regrouped`, everything else `twice`.
    """
    seen: dict[tuple[str, str], Batch] = {}
    values = [each for batch in batches for each in batch]

    def is_outdated(epoch: str, names: Mapping[str, object]) -> bool:
        return any(epoch == other and names.keys() < newer.keys() for other, newer in values)

    for batch in batches:
        for epoch, logged in batch:
            line = (epoch, json.dumps(logged, sort_keys=True))
            if line in seen and any(is_outdated(*each) for each in (*batch, *seen[line])):
                tally.regrouped += 1
            elif line in seen:
                tally.twice.append(f"{model}: epoch {epoch}")
            seen[line] = batch


def _compare_checkpoints(tally: Tally, receipts: Receipts, received: Received, outbox: _Outbox) -> None:
    found = Counter(digest_of(dict(each)) for each in received.checkpoints)
    tally.bytes += sum(len(content) for each in received.checkpoints for content in each.values())
    tally.twice += [f"{receipts.model}: a checkpoint" for count in found.values() if count > 1]
    newest = {each.kind: each for each in receipts.saved}
    for each in receipts.saved:
        is_owed = each.kind == "final" or each is newest[each.kind]
        state = outbox.checkpoints[each.entry]["state"]
        # Another one that was saved just before a kill, without a receipt, may have replaced it.
        if found[each.digest] or (state == State.SUPERSEDED and not (is_owed and each.kind == "final")):
            continue
        tally.missing.append(f"{receipts.model}: the {each.kind} checkpoint of epoch {each.epoch} ({state})")


def _compare_newest(
    tally: Tally, receipts: Receipts, named: Mapping[str, str] | None, outbox: _Outbox
) -> None:
    """No checkpoint may be named as the newest of its kind that is older than one that was delivered.

    A newer one may be: it was stored, its worker was killed, and another one has superseded it; or it has no receipt.
    """
    if named is None:
        return
    for kind in ("last", "best", "final"):
        kinds = ("last", "best") if kind == "last" else (kind,)
        saved = [each for each in receipts.saved if each.kind in kinds]
        delivered = [outbox.checkpoints[each.entry]["state"] == State.DELIVERED for each in saved]
        if not any(delivered):
            continue
        newest = max(at for at, is_there in enumerate(delivered) if is_there)
        older = {"", *(each.digest for each in saved[:newest])}
        found = named.get(kind, "")
        if found in older:
            which = next((f"of epoch {each.epoch}" for each in saved if each.digest == found), "missing")
            tally.wrong.append(
                f"{receipts.model}: epoch {saved[newest].epoch} was delivered, the newest {kind} one is {which}"
            )


def _verify(tally: Tally, target: Target, run: str) -> None:
    found = verify(target.name, run=run, read=True)
    tally.verified += len(found.checkpoints)
    tally.altered += [f"verify {run}: {each}" for each in found.differences]
    # A whole one without a record: it was stored, its worker was killed, and a newer one has superseded it.
    if not all(each.read for each in found.checkpoints):
        tally.wrong.append(f"verify {run}: not everything was read")


def _end_of(target: Target, state: str) -> str:
    # Platform has no state for an interrupted run.
    return "failed" if target.type == "platform" and state == "interrupted" else state
