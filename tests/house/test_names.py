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


def faults(path: Path) -> Iterator[str]:
    """What is wrong with a file of the package."""
    text = path.read_text()
    tree = ast.parse(text)
    if path.stem in {"utils", "util", "helpers", "common", "manager", "misc"}:
        yield "its name says nothing"
    if len(text.splitlines()) > 370:
        yield "it holds more than one idea"
    if text and path.name != "__about__.py" and not ast.get_docstring(tree):
        yield "it does not start with a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and FORBIDDEN.search(node.name.lstrip("_")):
            yield f"{node.name} is no name of the glossary"


def test_a_file_holds_one_idea_and_its_names_are_words_of_the_glossary() -> None:
    assert [f"{path.relative_to(ROOT)}: {fault}" for path in CODE for fault in faults(path)] == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("utils.py", '"""It."""', "its name says nothing"),
        ("long.py", '"""It."""\n' + "x = 1\n" * 370, "it holds more than one idea"),
        ("bare.py", "x = 1", "it does not start with a docstring"),
        ("names.py", '"""It."""\nclass _RunManager: ...', "_RunManager is no name of the glossary"),
        ("good.py", '"""It."""\nclass Runs: ...', None),
    ],
)
def test_a_fault_of_a_file_is_found(tmp_path: Path, name: str, text: str, fault: str | None) -> None:
    (tmp_path / name).write_text(text)

    assert list(faults(tmp_path / name)) == ([fault] if fault else [])


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
