"""What the commands that read a destination have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict, TypeVar

import click

from hubqueue.cli.arguments import HomeOptions

_Command = TypeVar("_Command", bound=Callable[..., object])


class Homes(TypedDict):
    """The home and the configuration, as the functions of `retrieval` take them."""

    home: str | None
    config: str | None


def homes(options: HomeOptions) -> Homes:
    """Those that the command line names."""
    return {"home": options.home_option, "config": options.config_option}


def run_option(*, required: bool) -> Callable[[_Command], _Command]:
    """The option `--run`."""
    return click.option(
        "--run",
        "run",
        metavar="NAME",
        required=required,
        help="The run: its name at the destination, or its id or name in this home.",
    )
