"""What all commands share: the table of commands, exit codes, errors, JSON output and signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from hubqueue.__about__ import __version__
from hubqueue.cli import screen
from hubqueue.cli.arguments import home_options
from hubqueue.cli.errors import SuggestingGroup, describe, report_error
from hubqueue.domain.errors import HubqueueError, OutboxAlien, OutboxTooNew, RunFinished

# How a write to a stream fails: the disk is full, or the stream is closed.
_STREAM_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EBADF)
DONE, ATTENTION, USAGE, LEFT = 0, 1, 2, 3
VERSION = f"hubqueue {__version__}"


# Each file (its path with dots) and its commands. Only the requested command's file is imported: imports take most of a
# short command's time.
_FILES = {
    "status": ("status", "runs", "entries", "show", "log"),
    "worker": ("worker", "stop"),
    "drain": ("drain",),
    "repair": ("redrive", "cancel", "resume", "prune", "migrate", "check"),
    "login": ("login", "readdress"),
    "enqueue": ("enqueue",),
    "config": ("config",),
    "destinations.known": ("destinations",),
    "destinations.pull": ("pull",),
    "destinations.verify": ("verify",),
    "sandbox": ("sandbox",),
    "demo": ("demo",),
}
_FILE_OF = {command: file for file, commands in _FILES.items() for command in commands}


class CommandGroup(SuggestingGroup):
    """The group of all commands. Prints each error as one line and a hint, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_FILE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _FILE_OF:
            return None
        found: click.Command = getattr(import_module(f"hubqueue.cli.{_FILE_OF[cmd_name]}"), cmd_name)
        _accept_home_options(found)
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
                line, hint = describe(error)
                report_error(HubqueueError(line, hint=hint))
            code = USAGE
        except click.Abort:
            click.echo("aborted", err=True)
            code = ATTENTION
        except BrokenPipeError:
            screen.discard_stdout()  # the reader (`| head`) has closed the pipe
            code = DONE
        except HubqueueError as error:
            report_error(error)
            is_usage = isinstance(error, ValueError | RunFinished | OutboxAlien | OutboxTooNew)
            code = USAGE if is_usage else ATTENTION
        except OSError as error:
            code = _report_system_error(error)
        sys.exit(code if isinstance(code, int) else DONE)


def _accept_home_options(command: click.Command) -> None:
    """Add --home and --config to a command and its subcommands, so that both work after the command too."""
    if any(option.name == "home" for option in command.params):
        return
    for option in home_options():
        option.hidden = True
        command.params.append(option)
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        _accept_home_options(each)


def print_json(value: Any) -> None:
    """Print a value as JSON; times become ISO 8601."""
    click.echo(json.dumps(value, indent=1, default=_plain))


def exit_with(code: int) -> NoReturn:
    """End the command with one of the exit codes of this module."""
    click.get_current_context().exit(code)


def on_signal(act: Callable[[], object]) -> None:
    """From now on, call `act` on a separate thread for each SIGINT and SIGTERM.

    Python runs a signal handler between two instructions of the main thread, which may hold the lock that the handler
    needs: `Event.set` in a handler blocks forever if it interrupts `Event.wait`. So the handler only writes a byte.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)

    def listen() -> None:
        while os.read(receiver, 1):
            act()

    def handle(_number: int, _frame: FrameType | None) -> None:
        os.write(sender, b"!")

    threading.Thread(target=listen, name="hubqueue-signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _report_system_error(error: OSError) -> int:
    """Report a file that cannot be used, or a stdout that cannot be written; the exit code."""
    if error.filename is None and error.errno in _STREAM_ERRORS:
        screen.discard_stdout()
        hint = "only the output is missing; the command itself was not undone"
        report_error(HubqueueError(f"cannot write the output: {error.strerror}", hint=hint))
    else:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        hint = "name another file or folder" if where else "hubqueue check finds out why"
        report_error(HubqueueError(f"{where}{error.strerror or error}", hint=hint))
    return ATTENTION


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)
