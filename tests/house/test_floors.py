"""The floors: a file imports only from the floors below it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from hubqueue.config.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted({path.parent for path in (ROOT / "hubqueue").rglob("*.py")} - {ROOT / "hubqueue"})
# "http" is also the scheme of an address.
_TYPES = "|".join(set(BUILT_IN) - {"http"})
LEAK = re.compile(rf"""["'](?:{_TYPES})["']|(?<!row)\.type [=!]= (?!\w+\.type\b)""")
# These files are the public interface of their folders.
DECLARATIONS = {
    "hubqueue/cli",
    "hubqueue/destinations/folder",
    "hubqueue/destinations/http",
    "hubqueue/destinations/hub",
    "hubqueue/destinations/huggingface",
    "hubqueue/destinations/mlflow",
    "hubqueue/destinations/platform",
    "hubqueue/destinations/s3",
    "hubqueue/integrations/keras",
    "hubqueue/integrations/lightning",
    "hubqueue/integrations/ultralytics",
    "hubqueue/sandbox",
    "hubqueue/testing",
    "hubqueue/testing/conformance",
}


def test_the_floors_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")

    checked = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout


def test_every_package_has_a_floor() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layered = [each for each in settings["contracts"] if each["type"] == "layers"]

    assert settings["exclude_type_checking_imports"] is False
    assert all(each["exhaustive"] for each in layered)
    assert "hubqueue" in layered[0]["containers"]


def test_what_only_some_may_import_is_forbidden_to_all_others() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    forbidden = [each for each in settings["contracts"] if each["type"] == "forbidden"]

    # The source is the whole package, so that a new file is covered by default.
    assert [each["source_modules"] for each in forbidden] == [["hubqueue"]] * len(forbidden)


def test_a_folder_can_be_taken_in_at_a_glance() -> None:
    assert [folder for folder in FOLDERS if len(list(folder.glob("*.py"))) > 15] == []


def test_importing_from_a_folder_imports_nothing_else_of_it() -> None:
    filled = {str(each.relative_to(ROOT)) for each in FOLDERS if (each / "__init__.py").read_text()}

    assert filled - DECLARATIONS == set()


def test_only_its_folder_knows_a_destination() -> None:
    """A quoted name of a destination, or a comparison of types, outside the allowed folders is a leak."""
    rooms = ("destinations/", "config/registry.py", "integrations/hub_session/")
    leaks = []
    for path in sorted((ROOT / "hubqueue").rglob("*.py")):
        name = str(path.relative_to(ROOT / "hubqueue"))
        if not name.startswith(rooms):
            text = path.read_text()
            leaks += [(name, line) for line in text.splitlines() if LEAK.search(line)]

    assert leaks == []


def test_only_the_fake_services_know_the_sandbox() -> None:
    """Beside those that start it: a transport that knows the sandbox would not be tried against a stranger."""
    may = re.compile(
        r"sandbox/|destinations/(\w+/)?(sandbox|fake_\w+|services)\.py|cli/(sandbox|demo)\.py|testing/"
    )
    files = {
        path.relative_to(ROOT / "hubqueue"): path.read_text() for path in (ROOT / "hubqueue").rglob("*.py")
    }

    known = [
        str(name) for name, text in files.items() if "hubqueue.sandbox" in text and not may.match(str(name))
    ]

    assert known == []
