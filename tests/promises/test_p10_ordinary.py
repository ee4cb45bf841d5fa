"""P10 (with P1 and P11) whatever people do to a home and its processes: the small scale of the torture."""

from __future__ import annotations

import os

import pytest
from torture import ordinary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_nothing_is_lost_silently_or_sent_elsewhere_whatever_people_do(
    capfd: pytest.CaptureFixture[str],
) -> None:
    failed = ordinary.main(["--seed", "3", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
