"""P6 (and P1) when system calls fail: the small scale of the torture."""

from __future__ import annotations

import pytest
from torture import failing
from torture.disk import can_build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not can_build(), reason="needs Linux and a C compiler")
def test_no_failing_call_loses_acknowledged_data(capfd: pytest.CaptureFixture[str]) -> None:
    failed = failing.main(["--seed", "1", "--scale", "quick"])

    assert failed == 0, capfd.readouterr().out
