"""Builds drafts from a producer's calls, with their key and rank in the lane, and reads the position back. Pure rules.

Promises: the position of metrics and checkpoints is written and read only here. A destination that does not take steps
never gets the key of a step, and always gets the number of an epoch.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from hubqueue.domain.entry import Draft, Entry, Kind, Snapshot
from hubqueue.domain.plain import json_object, union

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Below every other rank of a checkpoint lane: a final checkpoint goes first.
FINAL_RANK = -(2**62)
_LAST, _BEST, _FINAL = "last", "best", "final"
_STEP = "step:"
# In a key whose destination is not known yet, between epoch and step. No other key of metrics has it.
_OR = "/"
# A longer number is no position: Python refuses to read one with thousands of digits.
_DIGITS = 20


class Position(NamedTuple):
    """How far a training was: its epoch, its step, or both. Both count from 0; None means not given."""

    epoch: int | None = None
    step: int | None = None

    def is_beyond(self, other: Position) -> bool:
        """Whether this is further than `other`: a higher epoch, and in the same epoch a higher step.

        Without an epoch in both, the steps decide. False if there is nothing to compare.
        """
        if self.epoch is not None and other.epoch is not None and self.epoch != other.epoch:
            return self.epoch > other.epoch
        return self.step is not None and other.step is not None and self.step > other.step

    @property
    def given(self) -> dict[str, int]:
        """The numbers that are given, as `epoch` and `step`."""
        return {name: number for name, number in self._asdict().items() if number is not None}

    @property
    def label(self) -> str:
        """The usual name of a checkpoint: `step-00000120` if there is a step, else `epoch-0012`."""
        return f"epoch-{self.epoch or 0:04d}" if self.step is None else f"step-{self.step:08d}"

    def __str__(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in self.given.items())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint, as a producer describes it: a file, or a folder. `map` is the mAP50-95.

    `epoch` and `step` count from 0; at least one of them is given. With `archive` a folder becomes one file, a tar.
    """

    path: str | os.PathLike[str]
    epoch: int | None = None
    is_best: bool = False
    map: float = 0.0
    final: bool = False
    archive: bool = False
    step: int | None = None


def metrics_draft(
    text: str, epoch: int | None = None, step: int | None = None, *, takes_steps: bool | None = False
) -> Draft:
    """The metrics of an epoch, a step, or both: at least one is given. The lane is ordered by the number in the key.

    A destination that `takes_steps` gets them under the step, with the epoch as a metric of that name if the name is free.
    Any other one gets them under the epoch; a step without an epoch is used as the epoch. If the destination is
    not known yet (`takes_steps` None), the key is preliminary: see `keyed`.
    """
    if takes_steps is None:
        numbers = ("" if each is None else str(each) for each in (epoch, step))
        return Draft(Kind.METRICS, _OR.join(numbers), 0, text)
    if step is not None and takes_steps:
        payload = text if epoch is None else union(json.dumps({"epoch": epoch}), text)
        return Draft(Kind.METRICS, f"{_STEP}{step}", step, payload)
    number = step if epoch is None else epoch
    assert number is not None, "the caller has checked it"
    return Draft(Kind.METRICS, str(number), number, text)


def is_preliminary(draft: Draft) -> bool:
    """Whether a draft is of metrics whose destination was not known when they were logged."""
    return draft.kind is Kind.METRICS and _OR in draft.key


def keyed(draft: Draft, *, takes_steps: bool) -> Draft:
    """A draft with its key at the destination, which is known now. Unchanged if its key is not preliminary."""
    if not is_preliminary(draft):
        return draft
    epoch, step, *_ = (int(each) if each else None for each in draft.key.split(_OR))
    found = metrics_draft(draft.payload, epoch, step, takes_steps=takes_steps)
    return found._replace(progress=draft.progress)


def ckpt_draft(
    checkpoint: Checkpoint, snapshot: Snapshot, *, now: datetime, takes_steps: bool = False
) -> Draft:
    """A checkpoint with its snapshot. Ranks rise with time, below them a final one, which goes first.

    The payload has the epoch (null if there is none, but a number for a destination that does not take steps: without an
    epoch that of the step), and the step if one was given.

    At most one `last` and one `best` checkpoint wait; a final one replaces both (in what order two of them are sent:
    `is_before`).
    A periodic checkpoint sent after the final one would turn a finished model at the hub back into an unfinished
    one, so the final one supersedes those that wait.
    """
    epoch, step = checkpoint.epoch, checkpoint.step
    payload = {
        "epoch": step if epoch is None and not takes_steps else epoch,
        **({} if step is None else {"step": step}),
        "is_best": checkpoint.is_best,
        "map": checkpoint.map,
        "final": checkpoint.final,
    }
    if checkpoint.final:
        return Draft(
            Kind.CKPT,
            _FINAL,
            FINAL_RANK,
            json.dumps(payload),
            snapshot,
            final=True,
            replaces=(_LAST, _BEST),
        )
    saved_at = (now - _EPOCH) // _MICROSECOND
    return Draft(Kind.CKPT, _BEST if checkpoint.is_best else _LAST, saved_at, json.dumps(payload), snapshot)


def is_before(entry: Entry, other: Entry) -> bool:
    """Whether a checkpoint is sent before another one of its run: what a hub resumes from is the one that arrives last.

    That is the one that is further in the training, if it was also saved later. If not, the training went back to an
    earlier epoch or step, or a script saves its best checkpoint after the last one: then it is `last`, from which a
    training resumes. So it is if one has only an epoch and the other one only a step.
    """
    if entry.final != other.final:
        return entry.final
    if {entry.key, other.key} != {_BEST, _LAST}:
        return entry.id < other.id
    best, last = (entry, other) if entry.key == _BEST else (other, entry)
    best_is_newer = best.id > last.id and position(best).is_beyond(position(last))
    return (entry is best) != best_is_newer


def position(entry: Entry | Draft) -> Position:
    """The position of metrics or of a checkpoint, as the training gave it. What is damaged has none.

    The epoch of metrics with a step is their metric `epoch`, if it is a whole number.
    """
    if entry.key.startswith(_STEP):
        epoch = (json_object(entry.payload) or {}).get("epoch")
        return Position(_whole(epoch), _number(entry.key.removeprefix(_STEP)))
    if entry.key not in (_LAST, _BEST, _FINAL):
        return Position(_number(entry.key))
    payload = json_object(entry.payload) or {}  # without one: damaged
    return Position(_whole(payload.get("epoch")), _whole(payload.get("step")))


def key_text(key: str) -> str:
    """The key of an entry for people: `step 120`. Other keys are shown as they are."""
    return f"step {key.removeprefix(_STEP)}" if key.startswith(_STEP) else key


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else None


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
