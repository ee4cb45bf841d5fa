"""The plugin of docs/destinations.md passes the conformance tests, with the test file of that page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_stage import PAGE, in_this_process, install, page_tests
from representative import only_fast
from stage import PATIENCE, ROOT, environ_of, python

# The page's classes are in this module now, so pytest runs `TestCollector`.
exec(compile(page_tests(), PAGE, "exec"), globals())
only_fast(
    "test_a_whole_training_arrives_once",
    "test_a_heartbeat_arrives_or_is_dropped",
    "test_a_folder_arrives_whole",
    "test_a_folder_is_there_only_when_all_its_files_are",
    "test_a_step_is_the_key",
    "test_check_reports_what_the_service_does",
    "test_a_refused_checkpoint_blocks_no_other",
    "test_a_slow_checkpoint_delays_no_metrics",
    "test_a_wait_that_the_service_asks_for_is_for_all_lanes",
    "test_no_secret_is_written_anywhere",
)(globals()["TestCollector"])


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with in_this_process(install(tmp_path / "site")):
        yield


def test_the_page_has_the_tests() -> None:
    assert "TestCollector" in globals()


@pytest.mark.slow
def test_an_author_runs_the_tests_of_the_page(tmp_path: Path) -> None:
    """As its author does: in the folder of the package, without the settings and fixtures of this project."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "whole or folder", "test_collector.py"]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}"}

    run = subprocess.run(
        command,
        cwd=tmp_path / "site",
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (run.returncode, "3 passed" in run.stdout) == (0, True), run.stdout + run.stderr


WITHOUT_PYTEST = """
import sys
import hubqueue.testing
assert "pytest" not in sys.modules
sys.modules["pytest"] = None
try:
    import hubqueue.testing.conformance
except ImportError as error:
    print(error)
"""


def test_only_the_conformance_tests_need_pytest(home: Path) -> None:
    out, _ = python(WITHOUT_PYTEST, environ_of(home), fresh=True).communicate(timeout=PATIENCE)

    assert out == "the conformance tests need pytest: pip install 'hubqueue[testing]'\n"
