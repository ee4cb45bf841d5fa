"""Which checkpoint of a run is meant: latest, best, final, epoch:12, step:120. Pure rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubqueue.domain.errors import InvalidArgument, NotThere
from hubqueue.domain.redact import clean
from hubqueue.domain.snapshots.stored import StoredCheckpoint

LATEST, ALL = "latest", "all"
_NUMBERED = re.compile(r"(epoch|step):([0-9]{1,18})")
_FLAGGED: dict[str, Callable[[StoredCheckpoint], bool]] = {
    "best": lambda each: each.is_best,
    "final": lambda each: each.is_final,
}


@dataclass(frozen=True, slots=True)
class Which:
    """A choice: `word` is latest, best, final, epoch, step or all; `number` is that of an epoch or a step."""

    word: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.word} {self.number}" if self.word in ("epoch", "step") else self.word


def parse(text: str, *, all: bool = False) -> Which:
    """The choice that a text means; with `all` also that word. Raises `InvalidArgument`."""
    if text in (LATEST, *_FLAGGED) or (all and text == ALL):
        return Which(text)
    if found := _NUMBERED.fullmatch(text):
        return Which(found[1], int(found[2]))
    words = [*((ALL,) if all else ()), LATEST, *_FLAGGED, "epoch:N"]
    raise InvalidArgument(
        f"which must be {', '.join(words)} or step:N, not {clean(text, limit=60)!r}",
        hint="such as epoch:12, counted from 0",
    )


def choose(checkpoints: Sequence[StoredCheckpoint], which: Which, *, run: str) -> StoredCheckpoint:
    """The checkpoint that is meant; of several, the newest. `checkpoints` are in the order of their epochs and steps.

    Raises `NotThere`, with what there is as the hint.
    """
    match which.word:
        case "latest":
            found = [each for each in checkpoints if each.is_latest] or list(checkpoints)
        case "epoch":
            found = [each for each in checkpoints if each.epoch == which.number]
        case "step":
            found = [each for each in checkpoints if each.step == which.number]
        case flag:
            found = [each for each in checkpoints if _FLAGGED[flag](each)]
    if found:
        return found[-1]
    if not checkpoints:
        raise NotThere(f"run {run} has no whole checkpoint there", hint="wait until one is delivered")
    wanted = f"of {which}" if which.word in ("epoch", "step") else f"that is {which}"
    raise NotThere(f"run {run} has no checkpoint {wanted} there", hint=f"it has {_there(checkpoints)}")


def _there(checkpoints: Sequence[StoredCheckpoint]) -> str:
    """What to choose from, in a few words."""
    names = [each.name for each in checkpoints]
    shown = names if len(names) <= 4 else [names[0], names[1], "…", names[-1]]
    return clean(", ".join(shown), limit=120)
