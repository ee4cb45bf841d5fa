"""The README: its commands and its script run in a separate checkout, in the order of the text.

The environment is that of a new machine: python3, an empty home directory, and no variable of hubqueue.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from stage import ROOT, wait_until

README = (ROOT / "README.md").read_text(encoding="utf-8")
PORT = 8765  # the default port of the sandbox, which the README names
KEY = "key-of-a-reader"


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """The commands of its console blocks, without their output."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def script() -> str:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of a clone of the repository."""
    folder = tmp_path / "hubqueue"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a new user. pip keeps the package index of this machine."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "XDG_CONFIG_DIRS"))}
    pythons = f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    (tmp_path / "person").mkdir(mode=0o700)
    return {**kept, "HOME": str(tmp_path / "person"), "PATH": pythons, "LANG": "C.UTF-8"}


def run(command: str, folder: Path, environ: Mapping[str, str], *, stdin: str = "") -> str:
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env=environ,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.slow
def test_every_command_of_the_readme_works(checkout: Path, bare: dict[str, str]) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"something else listens on port {PORT} of this machine")
    *install, demo, sandbox, export, train, status = commands(section("Try it in a minute"))
    assert [demo, sandbox] == [".venv/bin/hubqueue demo", ".venv/bin/hubqueue sandbox"]

    for command in install:
        run(command, checkout, bare)
    assert "Everything was delivered" in run(demo, checkout, bare)

    hub = subprocess.Popen(
        ["bash", "-c", f"exec {sandbox}"], cwd=checkout, env=bare, stdout=subprocess.DEVNULL
    )
    try:
        wait_until(_is_up, timeout=60)
        (checkout / "train.py").write_text(script(), encoding="utf-8")
        trained = run(f"{export}; {train}", checkout, bare)
        shown = run(f"{export}; {status}", checkout, bare)
    finally:
        run(".venv/bin/hubqueue stop", checkout, bare)
        hub.send_signal(signal.SIGTERM)
        hub.wait(30)

    assert "everything has arrived" in trained
    assert re.search(r"hubqueue: run \w+ to platform \(http://127\.0\.0\.1:8765\), key found", trained)
    assert "all uploaded" in shown
    login, check, _ = commands(section("Use it"))
    assert "saved" in run(login, checkout, bare, stdin=KEY)
    assert "default destination: platform" in run(f"{check} --offline", checkout, bare)


def _is_up() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def test_the_script_of_the_readme_runs_unchanged(tmp_path: Path) -> None:
    """Without a key and without a hub it saves, reports it, and exits with 0."""
    (tmp_path / "train.py").write_text(script().replace("timeout=30", "timeout=0"), encoding="utf-8")
    environ = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HUBQUEUE_WORKER__IDLE_EXIT": "0",
    }

    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "to platform (https://platform.ultralytics.com), there is no key for platform" in done.stderr
    assert "hubqueue login platform, or set ULTRALYTICS_API_KEY" in done.stderr
    assert "Leftover(entries=" in done.stdout
