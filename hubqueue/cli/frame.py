"""What all commands share: where the home is, how errors end, how JSON is printed."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hubqueue.__about__ import __version__
from hubqueue.cli import screen
from hubqueue.cli.mistakes import Corrected, worded
from hubqueue.domain.errors import ConfigError, HubqueueError, OutboxAlien, OutboxTooNew

if TYPE_CHECKING:
    from hubqueue.config.home import Home
    from hubqueue.config.reader import Config, Reading
    from hubqueue.outbox.outbox import Outbox

# What writing to a stream fails with: its disk is full, or it was closed.
_OF_A_STREAM = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF)
DONE, ATTENTION, USAGE, LEFT = 0, 1, 2, 3
VERSION = f"hubqueue {__version__}"


# Which file has which commands. Only the one that is asked for is loaded: most of what a quick command costs is loading.
_FAMILIES = {
    "look": ("status", "runs", "entries", "show", "log"),
    "work": ("worker", "stop", "drain"),
    "mend": ("redrive", "cancel", "resume", "login", "readdress", "prune", "migrate", "check"),
    "make": ("enqueue",),
    "config": ("config",),
    "tryout": ("sandbox", "demo"),
}
_HOMES = {command: family for family, commands in _FAMILIES.items() for command in commands}


class Door(Corrected):
    """The group of all commands. Words every error as one line and a hint, without a traceback, and corrects names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HOMES:
            return None
        found: click.Command = getattr(import_module(f"hubqueue.cli.{_HOMES[cmd_name]}"), cmd_name)
        _take_place(found)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        match args:
            case ["version"]:
                return "version", click.Command("version", callback=lambda: click.echo(VERSION)), []
            case ["help"]:
                return "help", click.Command("help", callback=lambda: click.echo(ctx.get_help())), []
            case ["help", *named]:
                return super().resolve_command(ctx, [*named, "--help"])
            case _:
                return super().resolve_command(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        screen.prepare()
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer
                error.show()
            else:
                line, hint = worded(error)
                complain(HubqueueError(line, hint=hint))
            code = USAGE
        except click.Abort:
            click.echo("aborted", err=True)
            code = ATTENTION
        except BrokenPipeError:
            screen.give_up_stdout()  # the reader (`| head`) has seen enough
            code = DONE
        except HubqueueError as error:
            complain(error)
            wrong_setting = isinstance(error, ValueError | OutboxAlien | OutboxTooNew)
            code = USAGE if wrong_setting else ATTENTION
        except OSError as error:
            code = _unusable(error)
        sys.exit(code if isinstance(code, int) else DONE)


@dataclass(frozen=True)
class Place:
    """Which home and which configuration a command was called for."""

    home_option: str | None
    config_option: str | None

    def home(self) -> Home:
        """The home, not opened."""
        from hubqueue.config.home import Home

        return Home.locate(self.home_option)

    def config(self) -> Config:
        """The configuration. Raises `ConfigError` with every problem."""
        return self.reading().config

    def reading(self) -> Reading:
        """The configuration, with where each setting comes from. Raises `ConfigError` with every problem."""
        chosen = None if self.config_option is None else Path(self.config_option)
        return self.home().read_config(chosen, os.environ)

    def open(self, *, courtesy: timedelta = timedelta(0)) -> Outbox:
        """The opened outbox; it is made where there is none."""
        from hubqueue.outbox.outbox import open_outbox

        return open_outbox(self.home_option, self.config_option, courtesy=courtesy)

    def has_outbox(self) -> bool:
        """Whether there is an outbox to look at: a command that only looks must not make one."""
        return self.config().outbox.url is not None or self.home().outbox.exists()


def place_options() -> list[click.Option]:
    """Where the home and the configuration are; understood before and after the command."""
    return [
        click.Option(
            ["--home"],
            type=click.Path(),
            metavar="FOLDER",
            expose_value=False,
            callback=_choose,
            help="The home of the outbox [HUBQUEUE_HOME, else the user data folder].",
        ),
        click.Option(
            ["--config"],
            type=click.Path(),
            metavar="FILE",
            expose_value=False,
            callback=_choose,
            help="The configuration [HUBQUEUE_CONFIG, else config.toml in the home].",
        ),
    ]


def _choose(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    place = ctx.obj or Place(None, None)
    if value is not None:
        place = replace(place, **{f"{option.name}_option": value})
    ctx.obj = place


def _take_place(command: click.Command) -> None:
    """Let a command and those beneath it take the options of its home as well."""
    if any(option.name == "home" for option in command.params):
        return
    for option in place_options():
        option.hidden = True
        command.params.append(option)
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _take_place(each)


pass_place = click.make_pass_decorator(Place)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people."
)
run_option = click.option(
    "--run",
    "run_id",
    metavar="ID",
    help="Only this run (its id as `hubqueue runs` shows it, or a unique beginning of it).",
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


def _unusable(error: OSError) -> int:
    """Word an error of the system: a file that cannot be used, or a stdout that takes nothing."""
    if error.filename is None and error.errno in _OF_A_STREAM:
        screen.give_up_stdout()
        complain(HubqueueError(f"cannot write the output: {error.strerror}", hint="what was done stays done"))
    else:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        complain(HubqueueError(f"{where}{error.strerror or error}", hint="name another file or folder"))
    return ATTENTION


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)
