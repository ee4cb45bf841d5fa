"""The command line: a thin layer. Each group of commands has its file; none knows SQL or HTTP.

Exit codes: 0 done, 1 something needs attention, 2 usage or configuration, 3 something is left to send.
"""

from __future__ import annotations

import os

import click

from hubqueue.__about__ import __version__
from hubqueue.cli.arguments import home_options
from hubqueue.cli.frame import VERSION, CommandGroup


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, "-V", "--version", message=VERSION)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Upload the metrics and checkpoints of training runs, even if the network fails or a process is killed.

    \b
    Examples:
      hubqueue status              show what is waiting, why, and when it is sent
      hubqueue drain               send it now, with a progress bar
      hubqueue demo                see an outage and a recovery on this machine
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False


main.params[:0] = home_options()
