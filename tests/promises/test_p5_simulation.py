"""P5 over a virtual day: the small scale of the simulation."""

from __future__ import annotations

import pytest
from torture import simulation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_limits_hold_and_are_used_whatever_happens_for_a_day(capsys: pytest.CaptureFixture[str]) -> None:
    failed = simulation.main(["--seed", "1", "--scale", "quick"])

    assert failed == 0, capsys.readouterr().out
