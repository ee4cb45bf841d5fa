"""Enqueue, claim and settle in an outbox with a long history, compared with the same moves in an empty one.

One process opens both outboxes and alternates, block by block. A cycle enqueues ten entries, claims a batch of ten
and settles it, so that the number of waiting entries stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from benchmarks.context import Context
from benchmarks.crowd import new_runs
from benchmarks.report import Found, Line
from benchmarks.timing import SCALARS, of_rounds, ratio, shown, timed
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Lease
from hubqueue.domain.outcome import Remote
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.metrics import metrics_text

_BATCH = 10
_TERMS = Terms("worker-1", timedelta(seconds=60), max_entries=_BATCH, max_bytes=1 << 20)
_PACES: Mapping[Kind, timedelta] = dict.fromkeys((Kind.REGISTRATION, Kind.METRICS, Kind.CKPT), timedelta(0))
_MOVES = ("enqueue", "claim", "settle")


@dataclass(slots=True)
class _Side:
    """One of the two outboxes, with the times of each move, round by round."""

    outbox: Outbox
    run_id: str
    epoch: int = 10_000_000
    lease: Lease | None = None
    rounds: dict[str, list[list[float]]] = field(default_factory=lambda: {move: [] for move in _MOVES})

    def cycles(self, count: int) -> None:
        found: dict[str, list[float]] = {move: [] for move in _MOVES}
        for _ in range(count):
            found["enqueue"] += timed(self._enqueue, _BATCH, self.epoch)
            self.epoch += _BATCH
            found["claim"] += timed(self._claim, 1)
            found["settle"] += timed(self._settle, 1)
        for move in _MOVES:
            self.rounds[move].append(found[move])

    def _claim(self, _number: int) -> None:
        self.lease = self.outbox.claims.claim("hub", _PACES, _TERMS)
        assert self.lease is not None and len(self.lease.batch.entries) == _BATCH

    def _settle(self, _number: int) -> None:
        assert self.lease is not None
        self.outbox.settlement.ack(self.lease, started_at=self.outbox.database.now(), remote=Remote())

    def _enqueue(self, epoch: int) -> None:
        self.outbox.entries.enqueue(self.run_id, metrics_draft(metrics_text(SCALARS), epoch))


def measure(context: Context) -> Found:
    rounds, cycles = (4, 25) if context.quick else (10, 50)
    crowd = context.crowd
    environ = context.environ(crowd.home)
    with (
        open_outbox(context.new("empty") / "home", environ=environ) as empty,
        open_outbox(crowd.home, environ=environ) as long,
    ):
        sides = [_Side(empty, new_runs(empty, 1)[0]), _Side(long, _first_owing(long))]
        for side in sides:
            side.cycles(5)
            for move in _MOVES:
                side.rounds[move].clear()
        for turn in range(rounds):
            for side in sides if turn % 2 else reversed(sides):
                side.cycles(cycles)
        assert long.stats.miscounted() == []
    return Found([_line(move, *(side.rounds[move] for side in sides), crowd.words) for move in _MOVES])


def _first_owing(outbox: Outbox) -> str:
    with outbox.database.read() as connection:
        found = connection.exec_driver_sql("SELECT run_id FROM lanes WHERE pending > 0 LIMIT 1").scalar_one()
    return str(found)


def _line(move: str, empty: list[list[float]], long: list[list[float]], words: str) -> Line:
    times = ratio(long, empty)
    return Line(
        f"{move} with {words}",
        f"empty outbox: {shown(of_rounds(empty, 0.5))}",
        shown(of_rounds(long, 0.5)),
        f"{times:.2f}x",
        "≤ 1.2x the empty outbox",
        times <= 1.2,
    )
