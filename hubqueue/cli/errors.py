"""How errors are printed: an `error:` line that says what failed and which, and a `hint:` line with the next step."""

from __future__ import annotations

from collections.abc import Iterable

import click

from hubqueue.cli.screen import visible
from hubqueue.domain.errors import ConfigError, HubqueueError


class SuggestingGroup(click.Group):
    """A group that suggests the nearest command for a misspelt one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownCommand(args[0], ctx, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class UnknownCommand(click.UsageError):
    """There is no such command; `meant` is the nearest one, if one is close enough."""

    def __init__(self, given: str, ctx: click.Context, known: Iterable[str]) -> None:
        group = ctx.command_path.removeprefix(ctx.find_root().command_path).lstrip()
        super().__init__(f"there is no command {f'{group} {given}'.lstrip()}", ctx)
        self.meant = nearest(given, known)


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known word that is closest to `given`, if one is close enough."""
    from difflib import get_close_matches

    words = sorted(known)
    longer = [word for word in words if given and word.startswith(given)]
    found = longer or get_close_matches(given, words, 1, 0.6)
    return found[0] if found else None


def report_error(error: HubqueueError) -> None:
    """Print an error and its hint to stderr, each on its own line."""
    for line in error.problems if isinstance(error, ConfigError) else (str(error),):
        click.echo(click.style("error: ", fg="red") + visible(line), err=True)
    if error.hint:
        click.echo(f"hint: {visible(error.hint)}", err=True)


def describe(error: click.ClickException) -> tuple[str, str]:
    """The line and the hint of a click error."""
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "hubqueue"
    usage = f"{command} --help shows the usage"
    match error:
        case UnknownCommand(meant=str() as meant):
            return error.message, f"did you mean {meant}? {command} --help lists all commands"
        case UnknownCommand():
            return error.message, f"{command} --help lists all commands"
        case click.NoSuchOption():
            known = {name for each in _options(error.ctx) for name in (*each.opts, *each.secondary_opts)}
            known.update(error.ctx.help_option_names if error.ctx else ())
            near = nearest(error.option_name, (name for name in known if name.startswith("--")))
            return f"there is no option {error.option_name}", f"did you mean {near}?" if near else usage
        case click.MissingParameter(param=click.Option() as option):
            return f"the option {_name(option)} is missing", usage
        case click.MissingParameter(param=click.Parameter() as argument):
            return f"{_name(argument)} is missing", usage
        case click.BadParameter(param=click.Parameter(type=click.Choice() as choice) as parameter):
            allowed = [str(each) for each in choice.choices]
            return f"{_name(parameter)} must be one of {', '.join(allowed)}", usage
        case click.BadParameter():
            joint = " " if error.message.startswith("must ") else ": "
            named = "" if error.param is None else _name(error.param) + joint
            return named + error.message, usage
        case _:
            text = error.format_message().rstrip(".")
            return text[:1].lower() + text[1:], usage


def _options(ctx: click.Context | None) -> list[click.Option]:
    return [] if ctx is None else [each for each in ctx.command.params if isinstance(each, click.Option)]


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.make_metavar(click.get_current_context(silent=True) or click.Context(click.Command("")))
