"""Arguments that commands share: home and configuration, bounded numbers, and runs and entries by id.

An id that matches nothing is an error, with the nearest known id as its hint. It is never an empty result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import click

from hubqueue.cli.errors import nearest
from hubqueue.domain.errors import UnknownName, ambiguous, listed
from hubqueue.domain.quantities import plural

if TYPE_CHECKING:
    from hubqueue.config.home import Home
    from hubqueue.config.reader import Config, Reading
    from hubqueue.outbox.outbox import Outbox


@dataclass(frozen=True)
class HomeOptions:
    """The values of --home and --config."""

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
        """The configuration and the source of each setting. Raises `ConfigError` with every problem."""
        chosen = None if self.config_option is None else Path(self.config_option)
        return self.home().read_config(chosen, os.environ)

    def open(self, *, courtesy: timedelta = timedelta(0)) -> Outbox:
        """The opened outbox. Creates it if it does not exist."""
        from hubqueue.outbox.outbox import open_outbox

        return open_outbox(self.home_option, self.config_option, courtesy=courtesy)

    def open_to_read(self) -> Outbox:
        """The opened outbox, for a command that changes nothing. Says on stderr when the home is read-only."""
        from hubqueue.outbox.outbox import open_to_read

        outbox = open_to_read(self.home_option, self.config_option)
        if outbox.home.read_only:
            click.echo(
                f"note: the home {outbox.home.path} is read-only: nothing can be saved or sent in it",
                err=True,
            )
        return outbox

    def has_outbox(self) -> bool:
        """Whether an outbox exists. A command that only reads must not create one.

        Raises `OutboxUnavailable` for a home that cannot exist: nothing will ever be in it.
        """
        found = self.config().outbox.url is not None or self.home().outbox.exists()
        if not found and (impossible := self.home().obstacle()) is not None:
            raise impossible
        return found


def home_options() -> list[click.Option]:
    """--home and --config, accepted before and after the command."""
    return [
        click.Option(
            ["--home"],
            type=click.Path(),
            metavar="FOLDER",
            expose_value=False,
            callback=_note_option,
            help="The folder of the outbox [HUBQUEUE_HOME, else the user data folder].",
        ),
        click.Option(
            ["--config"],
            type=click.Path(),
            metavar="FILE",
            expose_value=False,
            callback=_note_option,
            help="The configuration file [HUBQUEUE_CONFIG, else config.toml in the home].",
        ),
    ]


def _note_option(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    options = ctx.obj or HomeOptions(None, None)
    if value is not None:
        options = replace(options, **{f"{option.name}_option": value})
    ctx.obj = options


pass_options = click.make_pass_decorator(HomeOptions)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people."
)
run_option = click.option(
    "--run",
    "run_id",
    metavar="ID",
    help="Only this run: its id as `hubqueue runs` shows it, a unique prefix of it, or its name. Of several destinations, the id at any of them.",
)


class Whole(click.IntRange):
    """A whole number of at least `min`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"must be a whole number{_bounds(self)}, not {value!r}", param, ctx)


class Number(click.FloatRange):
    """A number of at least `min`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"must be a number{_bounds(self)}, not {value!r}", param, ctx)


class Seconds(click.FloatRange):
    """A length of time, as in the settings: a number of seconds of at least `min`, or a text such as "5 min"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from hubqueue.domain.quantities import read_span

        span = read_span(value.strip()) if isinstance(value, str) else None
        try:
            found = super().convert(value if span is None else span, param, ctx)
        except click.BadParameter:
            found = math.nan
        if math.isnan(found):
            self.fail(
                f'must be a number{_bounds(self)}, or a text such as "5 min", not {value!r}', param, ctx
            )
        return found


def _bounds(kind: click.IntRange | click.FloatRange) -> str:
    if kind.min is None:
        return ""
    return f" of at least {kind.min:g}" if kind.max is None else f" from {kind.min:g} to {kind.max:g}"


@overload
def find_run(outbox: Outbox, given: str) -> str: ...
@overload
def find_run(outbox: Outbox, given: None) -> None: ...
@overload
def find_run(outbox: Outbox, given: str | None) -> str | None: ...
def find_run(outbox: Outbox, given: str | None) -> str | None:
    """The id of the run with this id, this name, or this unique prefix of an id. Raises `UnknownName`.

    The runs of one training have one name: its destinations.
    """
    if given is None or outbox.stats.run(given) is not None:
        return given
    if named := outbox.stats.runs_named(given):
        if len(set(map(tuple, map(outbox.stats.together, named)))) > 1:
            problem = f"{plural(len(named), 'run')} have the name {given}: {listed(named)}"
            raise UnknownName(problem, hint="give the id of one of them")
        return named[0]
    known = outbox.stats.run_ids()
    found = [each for each in known if given and each.startswith(given)]
    if len(found) > 1:
        raise ambiguous(given, found)
    return found[0] if found else refuse_run(given, known)


@overload
def find_runs(outbox: Outbox, given: str) -> list[str]: ...
@overload
def find_runs(outbox: Outbox, given: str | None) -> list[str] | None: ...
def find_runs(outbox: Outbox, given: str | None) -> list[str] | None:
    """The ids of the training with this run, one for each of its destinations; otherwise as `find_run`."""
    run_id = find_run(outbox, given)
    return None if run_id is None else outbox.stats.together(run_id)


def refuse_run(given: str, known: Iterable[str] = ()) -> str:
    """Raise `UnknownName`: there is no such run."""
    meant = nearest(given, known)
    hint = f"did you mean {meant}? " if meant else ""
    raise UnknownName(f"there is no run {given}", hint=f"{hint}hubqueue runs --all lists them")


def find_entries(outbox: Outbox, ids: Sequence[int]) -> list[dict[str, Any]]:
    """These entries. Raises `UnknownName` for the first that does not exist."""
    found = {row["id"]: row for row in outbox.stats.entries(ids=ids, limit=len(ids))}
    for each in ids:
        if each not in found:
            refuse_entry(each)
    return [found[each] for each in dict.fromkeys(ids)]


def refuse_entry(entry_id: int) -> None:
    """Raise `UnknownName`: there is no such entry."""
    hint = "hubqueue entries lists them; finished entries are deleted after a while"
    raise UnknownName(f"there is no entry {entry_id}", hint=hint)
