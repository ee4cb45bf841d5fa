"""Bad peers against the real transport, over real sockets; their responses are judged by an independent oracle.

Proves: no response (cut, fuzzed, slow, large or forged) counts as a delivery that it does not prove; none
holds the worker beyond its deadlines; only the hub gets the key; memory use stays constant.
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
from torture.frame import Failed, Report, new_report
from torture.oracle import Broken, Proof, proof, read
from torture.script import ScriptedPeer

from hubqueue.domain.outcome import Delivered

SENTENCE = (
    "No response counts as a delivery that it does not prove, none holds the worker beyond its deadlines, "
    "only the hub gets the key, and memory use stays constant."
)
_DEADLINE = 1.0
_TRIES = 3
# The machine may be busy: this only separates deadlines from hangs.
_SLACK = 10.0
_FLAT = 16 * 1024 * 1024
_SCALES = {"quick": (9, 1_500, 20_000), "normal": (1, 15_000, 200_000), "full": (1, 100_000, 1_000_000)}


@dataclass(slots=True)
class Count:
    """The counts of a series of responses."""

    answers: int = 0
    proofs: int = 0
    delivered: int = 0
    false: int = 0
    missed: int = 0
    shown: list[str] = field(default_factory=list)  # the first few of both
    waited: int = 0
    slowest: float = 0.0

    def note(
        self, answer: Answer, outcome: object, delivered: bool, took: float, *, soiled: bool = False
    ) -> None:
        """Count one response, the client's outcome, and the time it took (seconds).

        `soiled`: bytes of the previous response may precede this one. Then it need not be accepted, but an invalid
        response must still not be accepted.
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
            self.shown.append(f"{answer!r}\n  -> {outcome!r}")
        self.waited += took > _DEADLINE
        self.slowest = max(self.slowest, took)

    def __str__(self) -> str:
        return (
            f"{self.answers} responses, {self.proofs} of them certain proofs, {self.delivered} reported as deliveries; "
            f"false {self.false}, missed {self.missed}, waited for {self.waited}, "
            f"slowest {self.slowest:.1f} s"
        )


def cuts(step: int) -> Iterator[Answer]:
    """Each of the twenty responses, whole and cut at every `step`th byte, with each ending of the connection."""
    for name in GOOD:
        for kind in ("metrics", "registration", "heartbeat", "ckpt"):
            yield good(kind, name)
        whole = good("metrics", name)
        for cut in range(0, len(whole.data), step):
            yield Answer("registration" if cut % 5 == 0 else "metrics", whole.data[:cut], "fin")
            yield Answer("metrics", whole.data[:cut], "reset")


def fuzz(count: int, dice: random.Random) -> Iterator[Answer]:
    """`count` fuzzed responses. The connection of an incomplete one is closed: deadlines are tested elsewhere."""
    for _ in range(count):
        answer = fuzzed(dice)
        if answer.ending == "keep":
            try:
                read(answer.data + answer.late, closed=False)
            except Broken:
                answer = Answer(answer.kind, answer.data + answer.late, "fin")
        yield answer


def ask_hubqueue(peer: ScriptedPeer, answers: Iterable[Answer]) -> Count:
    """hubqueue's transport, on connections that it keeps alive where possible."""
    count, hub, soiled = Count(), transport(peer.url, seconds=_DEADLINE), False
    for answer in answers:
        for left in reversed(range(_TRIES)):
            peer.next = answer
            began = time.monotonic()
            outcome = hub.send(batch(answer.kind), attempt())
            took = time.monotonic() - began
            # On a busy machine a whole response may come after the deadline: then it is asked for again.
            again = left > 0 and took > _DEADLINE and not isinstance(outcome, Delivered)
            if not again:
                count.note(answer, outcome, isinstance(outcome, Delivered), took, soiled=soiled)
            soiled = bool(answer.late)
            # Wait until the peer has closed a kept connection, if it does: the race for its reuse is not a defect.
            peer.sent.wait(_DEADLINE)
            peer.sent.clear()
            if not again:
                break
    hub.close()
    return count


def ask_bare(peer: ScriptedPeer, answers: Iterable[Answer]) -> Count:
    """The control: the check of most scripts."""
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
    """The resident memory of this process in bytes; 0 if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _series(report: Report, name: str, make: Callable[[], Iterator[Answer]], *, control: int) -> None:
    before = resident()
    with ScriptedPeer(KEY.encode()) as peer:
        count = ask_hubqueue(peer, make())
    grown = resident() - before
    report.write(f"{name}: {count}; {peer.connections} connections; memory {grown / 1e6:+.1f} MB")
    for shown in count.shown:
        report.write(f"  {shown}")
    report.require(not count.false, f"{count.false} false deliveries")
    report.require(not count.missed, f"{count.missed} proofs were not accepted")
    report.require(grown < _FLAT, "memory grew")
    report.require(count.slowest < _DEADLINE + _SLACK, f"a response held it for {count.slowest:.1f} s")
    report.require(not peer.suspects, f"{len(peer.suspects)} requests have the key outside its field")
    with ScriptedPeer(KEY.encode()) as peer:
        bare = ask_bare(peer, (each for index, each in enumerate(make()) if index < control))
    report.write(f"{name}, control (requests.post(…).ok): {bare}")
    report.require(bare.false > 0, "the control reported no false delivery: these responses prove nothing")


def main(argv: list[str] | None = None) -> int:
    """Run this part. Returns the exit code."""
    report = new_report("peers", SENTENCE, argv)
    step, answers, headers = _SCALES[report.scale]
    with report.verdict():
        _series(report, "cut responses", lambda: cuts(step), control=100_000)
        _series(
            report,
            "fuzzed responses",
            lambda: fuzz(answers, random.Random(report.seed)),
            control=answers if report.scale != "quick" else 500,
        )
        waits.run(report, headers)
        manners.run(report)
    return report.exit_code


__all__ = ["Failed", "main"]

if __name__ == "__main__":
    sys.exit(main())
