"""A type of hubqueue's own whose library is not installed: only its own runs wait, and every message has the install line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import bucket
import pytest
import shelf

import hubqueue
from hubqueue.config import registry
from hubqueue.config.declaration import Destination
from hubqueue.config.reader import parse
from hubqueue.domain.errors import ConfigError
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.check import examine

LINE = "install it with: pip install 'hubqueue[shelf]'; entries that wait for it are kept"
PROBLEM = "destinations of type 'shelf' need a_library_that_is_not_there, which is not installed"


@pytest.fixture
def _built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The type `shelf`, as if it were a built-in one."""
    with shelf.installed(tmp_path / "site"):
        monkeypatch.setitem(registry.BUILT_IN, "shelf", "hubqueue_shelf:DESTINATION")
        monkeypatch.setitem(registry.EXTRAS, "shelf", "a_library_that_is_not_there")
        registry.declaration.cache_clear()
        yield


@pytest.mark.usefixtures("_built_in", "migrated_home")
def test_a_run_is_saved_and_waits_until_the_library_is_there(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.configure(home, tmp_path / "shelf", "[destinations.hub]", "type = 'hub'")
    (tmp_path / "last.pt").write_bytes(b"weights")

    with hubqueue.start_run("m.pt", destination="lab", home=home, worker="none", strict=True) as run:
        run.save_checkpoint(tmp_path / "last.pt", epoch=0)
        other = hubqueue.start_run("yolov8n.pt", destination="hub", home=home, worker="none")
        other.finish(timeout=0)

    with open_outbox(home) as outbox:
        status = outbox.status()
        assert status["totals"]["pending"] >= 2
        assert PROBLEM in str(status["attention"])
    assert f"{PROBLEM}; everything is saved until then; {LINE}" in caplog.text
    wrong = [
        (each.detail, each.hint)
        for each in examine(str(home), None, online=False, set_aside=False)
        if not each.ok
    ]
    assert (f"lab: {PROBLEM}", LINE) in wrong


@pytest.mark.usefixtures("_built_in")
def test_pull_names_the_install_line(home: Path, tmp_path: Path) -> None:
    shelf.configure(home, tmp_path / "shelf")

    with pytest.raises(ConfigError, match=PROBLEM) as caught:
        hubqueue.pull("lab", run="r", to=tmp_path / "to", home=home)

    assert caught.value.hint == LINE


@pytest.mark.usefixtures("_built_in")
def test_its_settings_are_checked_as_always() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[destinations.lab]\ntype = 'shelf'\npaht = '/x'", {}, source="config.toml")

    assert caught.value.problems == ("unknown key destinations.lab.paht; did you mean 'path'?",)


@pytest.mark.usefixtures("_built_in")
def test_a_type_without_its_library_declares_all_that_needs_none() -> None:
    found, usual = registry.declaration("shelf"), bucket.registry.import_module("hubqueue_shelf").DESTINATION

    assert isinstance(found, registry.Absent)
    for each in fields(Destination):
        is_same = getattr(found, each.name) == getattr(usual, each.name)
        assert is_same == (each.name != "open"), each.name
    with pytest.raises(ConfigError):
        found.open(found.settings("lab"), tuple, open)  # type: ignore[arg-type]


def test_a_type_with_a_library_of_its_own_is_a_built_in_one_and_an_extra() -> None:
    with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]

    frameworks = {"accelerate", "keras", "lightning", "transformers"}
    assert set(registry.EXTRAS) == set(extras) - frameworks - {"dev", "postgres", "testing"}
    assert set(registry.EXTRAS) <= set(registry.BUILT_IN)
    for type, library in registry.EXTRAS.items():
        assert re.match(rf"{library}\b", extras[type][0].replace("-", "_")), type
    assert set(registry.IMPLIED) <= set(registry.BUILT_IN)


def test_a_misspelt_type_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[destinations.lab]\ntype = 'platfrom'", {}, source="config.toml")

    (problem,) = caught.value.problems
    assert problem.startswith("destinations.lab.type must be 'hub' or 'platform'")
    assert problem.endswith("; did you mean 'platform'?")
