"""`hubqueue sandbox`: a local hub for tests, which can simulate failures."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from hubqueue.cli.arguments import Seconds, Whole


@click.command()
@click.option(
    "--port",
    type=Whole(0, 65535),
    default=8765,
    show_default=True,
    metavar="N",
    help="The port on 127.0.0.1; 0 selects a free one.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Store what it receives in this folder [default: a temporary one].",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Accept only this key [default: any]. Repeatable; for tests, not for secrets.",
)
@click.option(
    "--fail",
    "faults",
    multiple=True,
    metavar="RULE",
    help="Simulate a failure, such as 503:0.3 or metrics:429:retry-after=5. Repeatable.",
)
@click.option(
    "--latency",
    type=Seconds(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Delay each response by SECONDS.",
)
@click.option(
    "--url-lifetime",
    type=Seconds(0, 86_400),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Platform: an upload URL expires after SECONDS.",
)
@click.option(
    "--requests-per-minute",
    type=Whole(min=1),
    metavar="N",
    help="Platform: accept N events a minute from one key, then respond 429 [default: no limit].",
)
@click.option(
    "--uploads-per-minute",
    type=Whole(min=1),
    metavar="N",
    help="Platform: the same for requests of an upload URL.",
)
def sandbox(
    port: int,
    data: Path | None,
    keys: tuple[str, ...],
    faults: tuple[str, ...],
    latency: float,
    url_lifetime: float,
    requests_per_minute: int | None,
    uploads_per_minute: int | None,
) -> None:
    """Run a local hub that can simulate failures.

    It speaks the real protocols and stores what it receives. It prints the address of its page and, for each service,
    an export line to copy. Ctrl-C stops it.

    \b
    Examples:
      hubqueue sandbox --data hub/
      hubqueue sandbox --fail 503:0.3 --fail ckpt:cut-body:times=1
      ULTRALYTICS_HUB_API=http://127.0.0.1:8765 HUB_API_KEY=anything python train.py
      ULTRALYTICS_PLATFORM_URL=http://127.0.0.1:8765 ULTRALYTICS_API_KEY=anything python train.py
    """
    from hubqueue.destinations.sandbox import Sandbox

    hub = Sandbox(
        data,
        port=port,
        keys=keys,
        faults=faults,
        latency=latency,
        url_lifetime=url_lifetime,
        requests_per_minute=requests_per_minute,
        uploads_per_minute=uploads_per_minute,
    )

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)
    try:
        hub.start()
        click.echo(f"sandbox at {hub.url}, storing what it receives in {hub.data} (Ctrl-C stops it)")
        click.echo(f"page: {hub.url}/\n\nCopy the line of your service into the terminal of your training:")
        for service in hub.services:
            variables = service.variables(hub.url, hub.example_key)
            assigned = " ".join(f"{name}={value}" for name, value in variables.items())
            click.echo(f"  {service.title}:\n    export {assigned}")
        hub.serve_forever()
    except KeyboardInterrupt:
        hub.stop()
        if sys.stdout.isatty():
            click.echo()  # the terminal has shown ^C on this line
        kept = (
            f"what it received is in {data}"
            if data
            else "what it received is deleted; --data FOLDER keeps it"
        )
        click.echo(f"sandbox stopped; {kept}")
    finally:
        hub.stop()
