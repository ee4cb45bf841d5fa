"""Calls and commands as a person writes them by mistake, or with good reason: one clear error, or the obvious meaning."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage import environ_of, hubqueue, new_run
from stage import log as log_epochs

from hubqueue.domain.errors import InvalidArgument
from hubqueue.integrations.ultralytics import attach
from hubqueue.outbox.outbox import open_outbox

pytestmark = pytest.mark.usefixtures("migrated_home")


def _model() -> Any:
    return SimpleNamespace(callbacks={}, train=lambda: None)


@pytest.mark.parametrize(
    "model", [object(), None, "yolov8n.pt", SimpleNamespace, SimpleNamespace(callbacks=[], train=print), {}]
)
def test_attach_names_what_it_needs(model: object) -> None:
    with pytest.raises(InvalidArgument, match="attach needs a YOLO model or a trainer, not ") as raised:
        attach(model)

    assert "attach(YOLO(" in str(raised.value.hint)


def test_attach_refuses_an_unknown_option_before_the_training() -> None:
    with pytest.raises(
        InvalidArgument, match="attach has no option 'destnation'; did you mean 'destination'"
    ):
        attach(_model(), destnation="hub")
    with pytest.raises(InvalidArgument, match="worker must be"):
        attach(_model(), worker="soon")


@pytest.mark.parametrize("timeout", ["30", "0.5 min", "30 s", "1 h 30 min", "5min", "inf"])
def test_a_timeout_may_have_units(home: Path, timeout: str) -> None:
    done = hubqueue(environ_of(home), "drain", "--timeout", timeout)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("timeout", ["soon", "5 parsecs", "nan", "-1", "", "-5 min"])
def test_a_timeout_that_is_no_length_of_time_is_a_usage_error(home: Path, timeout: str) -> None:
    done = hubqueue(environ_of(home), "drain", "--timeout", timeout)

    assert done.returncode == 2
    assert re.search(r"--timeout must be a number of at least 0, or a text such as \"5 min\"", done.stderr)


def test_cancel_without_a_terminal_asks_nobody(home: Path) -> None:
    with open_outbox(home) as outbox:
        run_id = new_run(outbox)
        log_epochs(outbox, run_id, 0, 1)

    done = hubqueue(environ_of(home), "cancel", "--run", run_id)

    assert done.returncode == 0
    assert "2 entries cancelled" in done.stdout
    assert "In a script" in hubqueue(environ_of(home), "cancel", "--help").stdout
