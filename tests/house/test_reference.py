"""The files generated from the declarations of the settings are up to date and complete."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from reference import EXAMPLE, MANUAL, generated

from hubqueue.config.config import Config
from hubqueue.config.reader import DestinationSettings, parse, variable
from hubqueue.config.reference.example import example
from hubqueue.config.reference.manual import marked, names
from hubqueue.config.registry import built_in
from hubqueue.config.setting import places


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_the_generated_files_are_fresh(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "make reference"


def test_the_manual_has_every_table_once() -> None:
    assert sorted(marked(MANUAL.read_text(encoding="utf-8"))) == sorted(names())


def test_every_setting_is_in_the_example_and_in_the_manual() -> None:
    example, manual = EXAMPLE.read_text(encoding="utf-8"), MANUAL.read_text(encoding="utf-8")

    for path, _ in places(Config):
        assert f"`{variable(*path)}`" in manual
        assert f"\n{path[-1]} = " in example or f"\n# {path[-1]} = " in example
    for each in built_in():
        for path, _ in places(each.settings, ("destinations", "<name>")):
            assert f"`{variable(*path)}`" in manual
            assert any(f"\n{start}{path[-1]} = " in example for start in ("", "# ", "#", "## "))


def test_what_the_example_shows_commented_out_can_be_used() -> None:
    lines = [line.removeprefix("# ") if " = " in line[:40] else line for line in example().splitlines()]
    without_words = "\n".join(line for line in lines if not line.startswith("# "))
    shown = tomllib.loads(without_words)

    config = parse(without_words, {}, source="example")

    assert config.outbox.url == shown["outbox"]["url"]
    assert config.destination("hub").proxy == shown["destinations"]["hub"]["proxy"]


def test_every_help_is_one_line_that_ends_without_a_full_stop() -> None:
    for path, setting in [*places(Config), *places(DestinationSettings)]:
        assert setting.help and "\n" not in setting.help and not setting.help.endswith("."), path
        assert "|" not in setting.help, path
