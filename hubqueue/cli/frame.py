"""What all commands share: where the home is, how errors end, how JSON is printed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hubqueue.errors import ConfigError, HubqueueError, OutboxAlien, OutboxTooNew

if TYPE_CHECKING:
    from hubqueue.config import Config
    from hubqueue.home import Home
    from hubqueue.outbox import Outbox

DONE, ATTENTION, USAGE, LEFT = 0, 1, 2, 3


# Which file has which commands. Only the one that is asked for is loaded: most of what a quick command costs is loading.
_FAMILIES = {
    "look": ("status", "runs", "entries", "show", "log"),
    "work": ("worker", "drain"),
    "mend": ("redrive", "cancel", "resume", "login", "readdress", "prune", "migrate", "check"),
    "make": ("enqueue",),
    "tryout": ("sandbox", "demo"),
}
_HOMES = {command: family for family, commands in _FAMILIES.items() for command in commands}


class Door(click.Group):
    """A group of commands that words every error of hubqueue as one line and a hint, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HOMES:
            return None
        found: click.Command = getattr(import_module(f"hubqueue.cli.{_HOMES[cmd_name]}"), cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HubqueueError as error:
            complain(error)
            wrong_setting = isinstance(error, ValueError | OutboxAlien | OutboxTooNew)
            ctx.exit(USAGE if wrong_setting else ATTENTION)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(DONE)


@dataclass(frozen=True)
class Place:
    """Which home and which configuration a command was called for."""

    home_option: str | None
    config_option: str | None

    def home(self) -> Home:
        """The home, not opened."""
        from hubqueue.home import Home

        return Home.locate(self.home_option)

    def config(self) -> Config:
        """The configuration. Raises `ConfigError` with every problem."""
        chosen = None if self.config_option is None else Path(self.config_option)
        return self.home().load_config(chosen, os.environ)

    def open(self, *, courtesy: timedelta = timedelta(0)) -> Outbox:
        """The opened outbox; it is made where there is none."""
        from hubqueue.outbox import open_outbox

        return open_outbox(self.home_option, self.config_option, courtesy=courtesy)

    def has_outbox(self) -> bool:
        """Whether there is an outbox to look at: a command that only looks must not make one."""
        return self.config().outbox.url is not None or self.home().outbox.exists()


pass_place = click.make_pass_decorator(Place)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people."
)
run_option = click.option(
    "--run", "run_id", metavar="ID", help="Only this run (as `hubqueue runs` shows it)."
)


def complain(error: HubqueueError) -> None:
    """Print an error and its hint, each on a line of its own, on stderr."""
    for line in error.problems if isinstance(error, ConfigError) else (str(error),):
        click.echo(click.style("error: ", fg="red") + line, err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def print_json(value: Any) -> None:
    """Print a value as JSON; moments become ISO 8601."""
    click.echo(json.dumps(value, indent=1, default=_plain))


def leave(code: int) -> NoReturn:
    """End the command with an exit code of the map."""
    click.get_current_context().exit(code)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)
