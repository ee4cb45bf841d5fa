"""Commands for keys and accounts: login, readdress."""

from __future__ import annotations

import os
import sys

import click

from hubqueue.cli.arguments import HomeOptions, find_run, pass_options
from hubqueue.domain.account import origin
from hubqueue.domain.errors import CredentialsError
from hubqueue.domain.quantities import plural


@click.command()
@click.argument("destination")
@pass_options
def login(options: HomeOptions, destination: str) -> None:
    """Store a key for a destination, and lift its hold.

    The key is stored in credentials.toml (mode 0600) for the current address of the destination. On a terminal it
    prompts for the key. Otherwise it reads standard input, one line for each secret that the destination needs. A key
    is never an argument. It is sent to that address only. Runs that were started with the replaced key, or whose key
    was refused, use the new key.

    \b
    Examples:
      hubqueue login hub
      hubqueue login hub < key.txt
    """
    from hubqueue.config.credentials import own_variables, secrets_of, usual_variables
    from hubqueue.config.declaration import Key
    from hubqueue.config.registry import absent
    from hubqueue.worker.readdressing import log_in

    target = options.config().destination(destination)
    where = f"{target.name} ({origin(target.url)})"
    if (missing := absent(target.type)) is not None:
        raise missing.error
    names = [each.name for each in secrets_of(target)]
    if not names:
        raise click.UsageError(f"destination {target.name} needs no key")
    first, *others = [_read_secret(each, target.name, where) for each in names]
    key = Key(first, dict(zip(names[1:], others, strict=True)))
    with options.open() as outbox:
        moved = log_in(outbox, target, key)
        in_use = next(iter(outbox.credentials.keys(target)))
    click.echo(f"Key for {where} saved. Test it with: hubqueue check")
    if moved:
        click.echo(f"{plural(moved, 'run')} of the replaced key will be sent with this key")
    if in_use.parts != key.parts:
        also_set = [
            name
            for name in (*own_variables(target), *usual_variables(target.type))
            if name and os.environ.get(name)
        ]
        click.echo(f"note: {' and '.join(also_set)} is also set and takes precedence", err=True)


def _read_secret(secret: str, name: str, where: str) -> str:
    """One secret, from the terminal or the next line of standard input."""
    if not sys.stdin.isatty():
        if not (line := sys.stdin.readline().strip()):
            hint = f"send it on standard input: hubqueue login {name} < key.txt"
            raise CredentialsError(f"standard input has no {secret} for {where}", hint=hint)
        return line
    prompt = f"{secret.replace('_', ' ').capitalize()} for {where}"
    return str(click.prompt(prompt, hide_input=True, err=True)).strip()


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option("--run", "run_id", metavar="ID", help="Only this run, at the destination with this id.")
@click.option(
    "--to", "destination", metavar="DESTINATION", help="The new destination [default: the same one]."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_options
def readdress(
    options: HomeOptions, addresses: tuple[str, ...], run_id: str | None, destination: str | None, yes: bool
) -> None:
    """Send runs to another address, or with another key.

    It uses the address and the key of this shell instead of those that the runs were started with. ADDRESS is what
    `hubqueue status` and `hubqueue check` show for such runs. A model that exists only at the old address is unknown
    at the new one.

    \b
    Examples:
      hubqueue readdress hub
      hubqueue readdress --run 0bf51cd3352d
    """
    from hubqueue.worker.readdressing import moves

    if bool(addresses) == (run_id is not None):
        raise click.UsageError("name the addresses, or a run with --run")
    with options.open() as outbox:
        run_id = find_run(outbox, run_id)
        # All moves are checked before the first one is carried out.
        for move in list(moves(outbox, addresses, run_id=run_id, to=destination)):
            if not yes and sys.stdin.isatty():
                click.confirm(f"Send {plural(move.runs, 'run')} of {move.source} to {move.goal}?", abort=True)
            click.echo(f"{plural(move.carry_out(), 'run')} of {move.source} will be sent to {move.goal}")
