"""P12 under kills, for each destination: the small scale of the torture."""

from __future__ import annotations

import os

import pytest
from torture import deliveries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_destination_gets_everything_once_whenever_workers_are_killed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    failed = deliveries.main(["--seed", "3", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
