"""The plugin of docs/destinations.md passes the conformance tests, with the test file of that page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_stage import PAGE, in_this_process, install, page_tests

# The page's classes are in this module now, so pytest runs `TestCollector`.
exec(compile(page_tests(), PAGE, "exec"), globals())


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path) -> Iterator[None]:
    with in_this_process(install(tmp_path / "site")):
        yield


def test_the_page_has_the_tests() -> None:
    assert "TestCollector" in globals()
