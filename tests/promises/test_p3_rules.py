"""P3 under random moves: the small scale of the state machine."""

from __future__ import annotations

import pytest
from torture import rules

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_rules_hold_after_every_move(capsys: pytest.CaptureFixture[str]) -> None:
    failed = rules.main(["--seed", "2", "--scale", "quick"])

    assert failed == 0, capsys.readouterr().out
