"""P1 under kills: the small scale of the torture."""

from __future__ import annotations

import os

import pytest
from torture import kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_acknowledged_survives_every_kill(capfd: pytest.CaptureFixture[str]) -> None:
    failed = kills.main(["--seed", "3", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
