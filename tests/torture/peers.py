"""Bad peers against the real transport, over real sockets: what they say is counted against an oracle of its own.

Proves: no answer, however cut, fuzzed, slow, large or forged, passes for a delivery that it does not prove; none
holds the worker beyond its deadlines; the key goes to the hub and to nobody else; memory stays flat.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests
from torture import manners, waits
from torture.answers import GOOD, Answer, fuzzed, good
from torture.client import KEY, attempt, batch, transport
from torture.frame import Failed, Options, options
from torture.oracle import Broken, Proof, proof, read
from torture.script import ScriptedPeer

from hubqueue.domain.outcome import Delivered

SENTENCE = (
    "No answer passes for a delivery that it does not prove, none holds the worker beyond its deadlines, "
    "the key reaches nobody but the hub, and memory stays flat."
)
_DEADLINE = 1.0
# A machine with other work on it: the deadlines are told apart from hangs, not measured.
_SLACK = 10.0
_FLAT = 16 * 1024 * 1024
_SCALES = {"quick": (9, 1_500, 20_000), "normal": (1, 15_000, 200_000), "full": (1, 100_000, 1_000_000)}


@dataclass(slots=True)
class Count:
    """What came of a series of answers."""

    answers: int = 0
    proofs: int = 0
    delivered: int = 0
    false: int = 0
    missed: int = 0
    shown: list[str] = field(default_factory=list)  # the first few of both
    waited: int = 0
    slowest: float = 0.0

    def note(
        self, answer: Answer, told: object, delivered: bool, took: float, *, soiled: bool = False
    ) -> None:
        """One answer, what the client made of it, and how long it took (seconds).

        `soiled`: bytes of the answer before may stand in front of this one. Then it need not be taken; what is
        not in it must not be taken for it all the same.
        """
        whole = answer.data + answer.late
        found = proof(answer.kind, whole, closed=answer.ending == "fin")
        self.answers += 1
        self.proofs += found is Proof.MUST
        self.delivered += delivered
        false = delivered and found is Proof.NO
        missed = found is Proof.MUST and not delivered and answer.ending != "reset" and not soiled
        self.false += false
        self.missed += missed
        if (false or missed) and len(self.shown) < 5:
            self.shown.append(f"{answer!r}\n  -> {told!r}")
        self.waited += took > _DEADLINE
        self.slowest = max(self.slowest, took)

    def __str__(self) -> str:
        return (
            f"{self.answers} answers, {self.proofs} of them proofs beyond doubt, {self.delivered} deliveries told; "
            f"false {self.false}, missed {self.missed}, waited for {self.waited}, "
            f"slowest {self.slowest:.1f} s"
        )


def cuts(step: int) -> Iterator[Answer]:
    """Every answer of the twenty, whole and cut at every `step`th byte, with each way of ending it."""
    for name in GOOD:
        for kind in ("metrics", "registration", "heartbeat", "ckpt"):
            yield good(kind, name)
        whole = good("metrics", name)
        for cut in range(0, len(whole.data), step):
            yield Answer("registration" if cut % 5 == 0 else "metrics", whole.data[:cut], "fin")
            yield Answer("metrics", whole.data[:cut], "reset")


def fuzz(count: int, dice: random.Random) -> Iterator[Answer]:
    """So many fuzzed answers. One that has not ended is never left open: its deadline is tried elsewhere."""
    for _ in range(count):
        answer = fuzzed(dice)
        if answer.ending == "keep":
            try:
                read(answer.data + answer.late, closed=False)
            except Broken:
                answer = Answer(answer.kind, answer.data + answer.late, "fin")
        yield answer


def ask_hubqueue(peer: ScriptedPeer, answers: Iterable[Answer]) -> Count:
    """The product, on connections that it keeps alive where it may."""
    count, hub, soiled = Count(), transport(peer.url, seconds=_DEADLINE), False
    for answer in answers:
        peer.next = answer
        began = time.monotonic()
        outcome = hub.send(batch(answer.kind), attempt())
        took = time.monotonic() - began
        count.note(answer, outcome, isinstance(outcome, Delivered), took, soiled=soiled)
        soiled = bool(answer.late)
        # That a kept connection was closed is known before it is used again: the race for it is nobody's fault.
        peer.said.wait(_DEADLINE)
        peer.said.clear()
    hub.close()
    return count


def ask_bare(peer: ScriptedPeer, answers: Iterable[Answer]) -> Count:
    """The control: what most scripts do."""
    count = Count()
    for answer in answers:
        peer.next = answer
        began = time.monotonic()
        try:
            ok = requests.post(peer.url, data=b"{}", headers={"x-api-key": KEY}, timeout=_DEADLINE).ok
        except (requests.RequestException, UnicodeError):
            ok = False
        count.note(answer, ok, ok, time.monotonic() - began)
    return count


def resident() -> int:
    """The memory that this process has now, in bytes; 0 where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _series(chosen: Options, name: str, make: Callable[[], Iterator[Answer]], *, control: int) -> None:
    before = resident()
    with ScriptedPeer(KEY.encode()) as peer:
        count = ask_hubqueue(peer, make())
    grown = resident() - before
    chosen.say(f"{name}: {count}; {peer.connections} connections; memory {grown / 1e6:+.1f} MB")
    for shown in count.shown:
        chosen.say(f"  {shown}")
    chosen.require(not count.false, f"{count.false} false deliveries")
    chosen.require(not count.missed, f"{count.missed} proofs were not taken")
    chosen.require(grown < _FLAT, "memory grew")
    chosen.require(count.slowest < _DEADLINE + _SLACK, f"an answer held it for {count.slowest:.1f} s")
    chosen.require(
        not peer.suspects, f"{len(peer.suspects)} requests carry the key elsewhere than in its field"
    )
    with ScriptedPeer(KEY.encode()) as peer:
        bare = ask_bare(peer, (each for index, each in enumerate(make()) if index < control))
    chosen.say(f"{name}, control (requests.post(…).ok): {bare}")
    chosen.require(bare.false > 0, "the control told no false delivery: these answers prove nothing")


def main(argv: list[str] | None = None) -> int:
    """Run this part; the exit code."""
    chosen = options("peers", SENTENCE, argv)
    step, answers, headers = _SCALES[chosen.scale]
    with chosen.verdict():
        _series(chosen, "cut answers", lambda: cuts(step), control=100_000)
        _series(
            chosen,
            "fuzzed answers",
            lambda: fuzz(answers, random.Random(chosen.seed)),
            control=answers if chosen.scale != "quick" else 500,
        )
        waits.run(chosen, headers)
        manners.run(chosen)
    return chosen.exit_code


__all__ = ["Failed", "main"]

if __name__ == "__main__":
    sys.exit(main())
