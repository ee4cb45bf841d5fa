"""The dependencies: every import is declared, and the tests run with the least declared versions."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _declared() -> dict[str, str]:
    """The least version of each dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)", each) for each in project["dependencies"]]
    assert all(found), "each dependency has a least version"
    return {each[1]: each[2] for each in found if each}


def test_the_oldest_versions_are_those_of_the_project() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()

    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))

    assert pinned == _declared()


def test_what_is_imported_is_declared() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "hubqueue").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]

    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hubqueue"}

    # Extras, and packages that are used only if the training has them.
    extras = {"psycopg", "pytest", "boto3", "botocore", "huggingface_hub"}
    frameworks = {"accelerate", "keras", "lightning", "pytorch_lightning", "transformers"}
    assert foreign - extras - frameworks - {"ultralytics", "torch", "numpy"} <= set(_declared())
