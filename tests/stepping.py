"""A stage whose worker a test steps, on a clock that the test moves."""

from __future__ import annotations

from typing import ClassVar

from stage import PATIENCE, totals

from hubqueue.outbox.outbox import Outbox
from hubqueue.testing import FakeClock
from hubqueue.worker.worker import Worker


class Stepping:
    """The steps of a stage. `most_steps` is how many a drain may take."""

    outbox: Outbox
    clock: FakeClock
    worker: Worker
    most_steps: ClassVar[int] = 60

    def step(self, times: int = 1) -> None:
        """Step the worker; between steps the clock moves beyond any wait."""
        for _ in range(times):
            self.worker.step()
            assert self.worker.wait_free(PATIENCE), "an attempt did not end"
            self.clock.advance(1000)

    def drain(self) -> None:
        """Step until nothing is pending."""
        for _ in range(self.most_steps):
            if not totals(self.outbox).get("pending"):
                return
            self.step()
        raise AssertionError(f"still owed: {totals(self.outbox)}; {self.reasons()}")

    def reasons(self) -> list[str]:
        """The outcomes of the attempts, oldest first."""
        return [f"{each['outcome']}: {each['reason']}" for each in reversed(self.outbox.stats.attempts())]
