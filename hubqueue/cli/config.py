"""`hubqueue config`: which settings exist, their values, and the source of each value."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubqueue.cli import screen
from hubqueue.cli.arguments import HomeOptions, json_option, pass_options
from hubqueue.cli.errors import SuggestingGroup
from hubqueue.cli.frame import print_json

if TYPE_CHECKING:
    from hubqueue.config.reader import Reading
    from hubqueue.config.setting import Setting


@click.group(cls=SuggestingGroup)
def config() -> None:
    """Show the configuration, an example, and the JSON Schema.

    \b
    Examples:
      hubqueue config show
      hubqueue config example > config.toml
      hubqueue config schema > hubqueue.schema.json
    """


@config.command()
@json_option
@pass_options
def show(options: HomeOptions, as_json: bool) -> None:
    """Print the value of every setting, and its source.

    The source is the file, a variable or the default. Passwords are masked. A HUBQUEUE_ variable that nothing reads
    is reported on standard error.

    \b
    Examples:
      hubqueue config show
      hubqueue config show --json
    """
    from hubqueue.cli.screen import table
    from hubqueue.config.credentials import secret_variables
    from hubqueue.config.names import unread
    from hubqueue.domain.redact import clean

    reading = options.reading()
    targets = reading.config.destinations
    rows, warnings = _rows(reading), unread(os.environ, targets, secret_variables(targets.values()))
    if as_json:
        named = None if reading.file is None else str(reading.file)
        print_json({"file": named, "settings": [each for each, _ in rows], "warnings": warnings})
        return
    file = reading.file or f"none ({options.home().config_file} does not exist)"
    click.echo(f"file: {screen.visible(str(file))}")
    shown = [(row["key"], clean(text, limit=300), row["variable"] or row["from"]) for row, text in rows]
    click.echo(table(("setting", "value", "from"), shown))
    for each in warnings:
        click.echo(f"warning: {each}", err=True)


@config.command()
def example() -> None:
    """Print an example file with every setting and its default.

    \b
    Example:
      hubqueue config example > config.toml
    """
    from hubqueue.config.reference import example as reference
    from hubqueue.config.registry import usable

    click.echo(reference.example(usable()), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration (draft 2020-12). Editors use it to complete and check the file.

    \b
    Example:
      hubqueue config schema > hubqueue.schema.json
    """
    from hubqueue.config.reference import schema as reference
    from hubqueue.config.registry import usable

    click.echo(json.dumps(reference.schema(usable()), indent=2))


def _rows(reading: Reading) -> list[tuple[dict[str, Any], str]]:
    """A row for each setting, and its value as the file would contain it."""
    from hubqueue.config.reader import Config
    from hubqueue.config.setting import places

    found = list(places(Config))
    for name, target in reading.config.destinations.items():
        found += places(type(target), ("destinations", name))
    return [_row(reading, path, setting) for path, setting in found]


def _row(reading: Reading, path: tuple[str, ...], setting: Setting) -> tuple[dict[str, Any], str]:
    from hubqueue.config.reference.example import in_toml

    value, given = _at(reading.config, path), reading.given.get(path)
    if setting.secret and value is not None:
        value = _masked(value)
    is_absent = (
        given is None and setting.absent is not None and not setting.has_value and value == setting.default
    )
    row = {
        "key": ".".join(path),
        "value": None if is_absent else _plain(value),
        "from": "default" if given is None else "file" if given.in_file else "variable",
        "variable": None if given is None or given.in_file else given.label,
    }
    return row, f"({setting.absent})".replace("`", "") if is_absent else in_toml(setting.form.written(value))


def _at(holder: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        holder = holder[key] if isinstance(holder, dict) else getattr(holder, key)
    return holder


def _plain(value: object) -> object:
    """A value for JSON: durations in seconds, sizes in bytes, paths as strings."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Path) else value


def _masked(url: str) -> str:
    """An address as the status shows it: without user, password and query values."""
    from hubqueue.outbox.database.address import Address

    return Address(url).shown
