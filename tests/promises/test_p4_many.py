"""P4 with many processes: the small scale of the torture."""

from __future__ import annotations

import os

import pytest
from torture import many

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_many_on_one_home_get_no_lock_error_and_lose_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    failed = many.main(["--seed", "3", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
