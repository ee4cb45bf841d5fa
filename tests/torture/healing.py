"""The judges of what heals without a person: holds that probe themselves, uploads over a slow link, and what is left."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torture.judges import Found
from torture.month import HOUR, Note, What
from torture.world import World

from hubqueue.domain.entry import Kind

# A hold is probed after a minute, then after as long as it has lasted, at most after an hour.
_FIRST, _MOST = 60.0, HOUR
# The clock of an outbox stores whole microseconds.
_ROUNDING = 1e-3
# A scan finds a lane for a probe where those that met the hold are gone; two of them may be needed.
_SLACK = 130.0


@dataclass(slots=True)
class _Hold:
    """One hold. `since` is its begin on the clock of the outbox, which a reboot may put back."""

    since: float
    probe: float  # the newest one, or the begin
    probes: int = 0
    well: float = math.inf  # from then on a probe gets through, and a worker runs
    unseen: float = 0.0
    asked: float = math.inf  # the wait that the hub asked for in response to the newest probe

    def wait(self) -> float:
        """The least wait after the newest probe."""
        return min(max(self.probe - self.since, _FIRST), _MOST, self.asked)


class _Holds:
    """The probes of each hold: not too soon, and soon enough after the hub is well again."""

    def __init__(self) -> None:
        self.now: _Hold | None = None
        self.ill = True
        self.workers = 0.0
        self.count = self.probes = self.most = 0
        self.latest = 0.0
        self.wrong: list[str] = []

    def see(self, note: Note) -> None:
        match note.what:
            case What.HELD if self.now is None:
                self.now = _Hold(note.at, note.at)
                self.count += 1
            case What.LIFTED if self.now is not None:
                self._lift(self.now, note.at)
            case What.ILL | What.WELL:
                self.ill = note.what is What.ILL
            case What.WORKERS:
                self.workers = note.number
            case What.REBOOTED if self.now is not None:
                self.now.unseen += max(0.0, note.number)
            case What.PAUSED if self.now is not None:
                self.now.asked = note.number
            case What.SENT if self.now is not None and note.at > self.now.since + _ROUNDING:
                self._probe(self.now, note.at)
        if self.now is not None:
            if self.ill or not self.workers:
                self.now.well = math.inf
            elif self.now.well == math.inf:
                self.now.well = note.at

    def _probe(self, hold: _Hold, at: float) -> None:
        if at == hold.probe:
            # Others that were on their way in the same moment: of another lane, a step later.
            return
        gap, wait = at - hold.probe, hold.wait()
        if gap + hold.unseen < wait - _ROUNDING:
            self.wrong.append(f"a hold was probed after {gap:.0f} s, before {wait:.0f} s, at {at:.0f} s")
        hold.probe, hold.probes, hold.asked = at, hold.probes + 1, math.inf

    def _lift(self, hold: _Hold, at: float) -> None:
        late = at - max(hold.well, hold.since)
        self.latest = max(self.latest, late)
        if hold.well == math.inf:
            self.wrong.append(f"a hold was lifted at {at:.0f} s, when nothing could get through")
        elif late > min(max(hold.well - hold.since, _FIRST), _MOST) + hold.unseen + _SLACK:
            self.wrong.append(f"a hold was lifted {late:.0f} s after the hub was well, at {at:.0f} s")
        self.probes += hold.probes
        self.most = max(self.most, hold.probes)
        self.now = None


def holds(chronicle: Iterable[Note]) -> Found:
    """The probes of what is on hold."""
    counted = _Holds()
    for note in chronicle:
        counted.see(note)
    if counted.now is not None:
        counted.wrong.append("a hold was never lifted: it needs a person")
    return Found(
        f"{counted.count} holds, all lifted by one of {counted.probes} probes, at most {counted.most} in one, the last at most "
        f"{counted.latest:.0f} s after the hub was well; wrong {len(counted.wrong)}",
        counted.count,
        counted.wrong,
    )


def uploads(chronicle: Iterable[Note]) -> Found:
    """Uploads that take hours: nobody else starts the same one meanwhile, which an expired lease would allow."""
    running: dict[str, float] = {}
    count, longest = 0, 0.0
    wrong = []
    for note in chronicle:
        if note.what is What.ARRIVED:
            if note.run in running:
                longest = max(longest, note.at - running.pop(note.run))
        elif note.what is What.SENT and note.kind is Kind.CKPT:
            if note.run in running:
                wrong.append(
                    f"a checkpoint was sent again {note.at - running[note.run]:.0f} s after its upload began"
                )
            if note.answer == "Uploading":
                running[note.run] = note.at
                count += 1
    return Found(
        f"{count} uploads over a slow link, the longest {longest / HOUR:.1f} hours; started twice {len(wrong)}",
        count,
        wrong,
    )


def alone(world: World) -> Found:
    """Nothing is left that a person would have to do."""
    counts, shown = world.counts, world.outbox.status()
    needs = [each["what"] for each in shown["attention"]]
    if beside := counts["written beside the disk"]:
        needs.append(f"{beside} files were written to the path of the spool while its disk was away")
    return Found(
        f"disks away {counts['disks away']}, checkpoints not saved {counts['checkpoints not saved']}; for a person "
        f"{len(needs)} things",
        len(world.trainings),
        needs,
    )
