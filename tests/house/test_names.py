"""Names and sizes: one word, one meaning; one file, one idea."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted((ROOT / "hubqueue").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Names that the glossary forbids for classes and functions.
FORBIDDEN = re.compile(
    r"(?:Manager|Store|Job|Throttle|Cooldown|Blob|Cache|Backend|Client|Consumer|Zombie|Experiment|Util|Helper)s?$"
)
SLEEP = "time." + "sleep("


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "manager", "misc"}
    assert len(path.read_text().splitlines()) <= 370
    if path.name != "__about__.py" and path.read_text():
        assert ast.get_docstring(ast.parse(path.read_text())), "a module starts with a docstring"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_words_of_the_glossary(path: Path) -> None:
    assert [name for name in names(path) if FORBIDDEN.search(name.lstrip("_"))] == []


def test_nobody_sleeps() -> None:
    assert [path for path in (*CODE, *TESTS) if SLEEP in path.read_text()] == []


def test_the_project_names_no_machine_and_no_registry() -> None:
    words = ["/wo" + "rk/", "/tmp/" + "v0", "py" + "pi.org", "files.python" + "hosted", "registry.npm" + "js"]
    found = [
        (path.relative_to(ROOT), word)
        for path in tracked()
        for word in words
        if word.encode() in path.read_bytes()
    ]

    assert found == []


def test_the_public_names_are_what_they_were() -> None:
    import hubqueue

    assert set(hubqueue.__all__) == {
        "HUBTrainingSession",
        "HubqueueError",
        "Leftover",
        "Outbox",
        "Run",
        "RunDestination",
        "Verification",
        "__version__",
        "open_outbox",
        "pull",
        "start_run",
        "verify",
    }
    for name in hubqueue.__all__:
        assert getattr(hubqueue, name) is not None
    with pytest.raises(AttributeError):
        _ = hubqueue.no_such_name


def test_public_things_have_docstrings() -> None:
    import inspect

    import hubqueue

    for thing in (hubqueue.Run, hubqueue.Outbox, hubqueue.Leftover):
        for name, member in inspect.getmembers(thing):
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{thing.__name__}.{name}"


def test_the_short_path_of_the_ultralytics_integration_needs_no_import_of_its_own() -> None:
    code = "import hubqueue; print(hubqueue.ultralytics.attach is hubqueue.integrations.ultralytics.attach)"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "True\n"
