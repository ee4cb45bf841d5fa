"""P1 under kills: the small scale of the torture."""

from __future__ import annotations

import os

import pytest
from torture import kills


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_every_kill(capfd: pytest.CaptureFixture[str]) -> None:
    failed = kills.main(["--seed", "3", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
