"""`hubqueue sandbox`, as a person at a terminal sees it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stage import PATIENCE, environ_of

from hubqueue.sandbox import Sandbox


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kept", [True, False])
def test_it_prints_what_to_copy_and_that_it_stopped(
    home: Path, tmp_path: Path, number: signal.Signals, kept: bool
) -> None:
    data = ["--data", str(tmp_path / "kept")] if kept else []
    command = [sys.executable, "-u", "-m", "hubqueue", "sandbox", "--port", "0", *data]
    process = subprocess.Popen(
        command, env=environ_of(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None

    first, page, *rest = (process.stdout.readline() for _ in range(8))
    process.send_signal(number)
    last, _ = process.communicate(timeout=PATIENCE)

    url = page.removeprefix("page: ").strip()
    root = url.removesuffix("/")
    folder = Path(first.partition("receives in ")[2].partition(" (Ctrl-C")[0])
    assert f"sandbox at {root}, " in first and url.startswith("http://127.0.0.1:")
    assert [line.strip() for line in rest if "export" in line] == [
        f"export ULTRALYTICS_HUB_API={root} HUB_API_KEY=sandbox-key",
        f"export ULTRALYTICS_PLATFORM_URL={root} ULTRALYTICS_API_KEY=sandbox-key",
    ]
    assert process.returncode == 0 and last.startswith("sandbox stopped; ") and last.count("\n") == 1
    assert (str(tmp_path / "kept") in last) == folder.exists() == ("deleted" not in last) == kept


def test_a_key_that_was_given_is_not_printed(home: Path) -> None:
    command = [sys.executable, "-u", "-m", "hubqueue", "sandbox", "--port", "0", "--key", "the-given-key"]
    with subprocess.Popen(command, env=environ_of(home), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = "".join(process.stdout.readline() for _ in range(8))
        process.terminate()

    assert "HUB_API_KEY=KEY" in printed and "the-given-key" not in printed


def test_the_example_key_of_the_page_is_one_that_is_accepted() -> None:
    assert (Sandbox().example_key, Sandbox(keys=("a",)).example_key) == ("sandbox-key", "KEY")
