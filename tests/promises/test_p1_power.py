"""P1 under power cuts: the small scale of the torture."""

from __future__ import annotations

import pytest
from torture import power
from torture.disk import can_build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not can_build(), reason="needs Linux and a C compiler")
def test_what_was_acknowledged_survives_power_cuts(capfd: pytest.CaptureFixture[str]) -> None:
    failed = power.main(["--seed", "1", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
