"""The floors: a file imports only what is beneath it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_floors_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")

    checked = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


def test_every_module_has_a_floor() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = settings["tool"]["importlinter"]["contracts"][0]
    floors = {name.strip() for layer in contract["layers"] for name in layer.split(":")}

    modules = {
        path.stem
        for path in (ROOT / "hubqueue").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }

    assert contract["exhaustive"]
    assert modules - {"__init__"} == floors
