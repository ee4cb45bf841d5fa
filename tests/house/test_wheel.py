"""The wheel carries what an installed hubqueue needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_carries_the_migrations_and_the_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert {
        "hubqueue/_migrations/env.py",
        "hubqueue/_migrations/versions/0001_outbox.py",
        "hubqueue/py.typed",
        "hubqueue/sandbox/page.html",
    } <= names
    assert "hubqueue/sandbox/__init__.py" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_what_the_wheel_installs_makes_an_outbox(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import hubqueue, hubqueue.outbox.database.migration; print(hubqueue.outbox.database.migration._scripts()); print(hubqueue.open_outbox().status()['outbox']['revision'])"
    environ = {"PYTHONPATH": str(tmp_path / "site"), "HUBQUEUE_HOME": str(tmp_path / "home"), "PATH": ""}

    shown = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    scripts, revision = shown.stdout.split()
    assert scripts == str(tmp_path / "site" / "hubqueue" / "_migrations")
    assert revision == "0008"
