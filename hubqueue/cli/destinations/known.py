"""`hubqueue destinations`: the types known here and what each can do, and the configured destinations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from hubqueue.__about__ import __version__
from hubqueue.cli.arguments import HomeOptions, json_option, pass_options
from hubqueue.cli.frame import print_json
from hubqueue.cli.screen import table, visible, wrap
from hubqueue.domain.errors import CredentialsError
from hubqueue.domain.redact import clean, harmless, safe_url

if TYPE_CHECKING:
    from hubqueue.config.config import Config
    from hubqueue.config.credentials import Credentials
    from hubqueue.config.settings import DestinationSettings

_YES, _NO = "yes", "-"


@click.command()
@json_option
@pass_options
def destinations(options: HomeOptions, as_json: bool) -> None:
    """List the types of destinations and the configured ones.

    Of each type it shows what it can do. A type comes with hubqueue or with another package. A key is never shown, only
    whether there is one.

    \b
    Examples:
      hubqueue destinations
      hubqueue destinations --json | jq '.types[] | select(.pull)'
    """
    kinds = _types()
    if not as_json:
        # Before the configuration, which may name a type that is not installed.
        _show_types(kinds)
    configured = _configured(options, options.config())
    if as_json:
        print_json(harmless({"types": kinds, "destinations": configured}))
        return
    rows = [
        (
            each["name"],
            each["type"],
            clean(each["address"] or "", limit=80) or _NO,
            {True: _YES, False: "no", None: _NO}[each["key"]],
            "default" if each["default"] else "",
        )
        for each in configured
    ]
    click.echo("\n" + table(("DESTINATION", "TYPE", "ADDRESS", "KEY", ""), rows))


def _types() -> list[dict[str, Any]]:
    from hubqueue.config.registry import BUILT_IN, EXTRAS, absent, declaration, packages, types

    of_packages = dict(packages())
    found: list[dict[str, Any]] = []
    for type in types():
        package, _, version = (
            ("hubqueue", "", __version__) if type in BUILT_IN else of_packages[type].rpartition(" ")
        )
        declared, missing = declaration(type), absent(type)
        is_known = missing is None or type in BUILT_IN
        found.append(
            {
                "type": type,
                "package": package or version,
                "version": version if package else None,
                "extra": f"hubqueue[{type}]" if type in EXTRAS else None,
                "kinds": [str(each) for each in declared.lanes] if is_known else None,
                "folders": declared.takes_folders if is_known else None,
                "steps": declared.takes_steps if is_known else None,
                "pull": declared.read is not None if is_known else None,
                "secrets": [each.name for each in declared.secrets] if is_known else None,
                "problem": None if missing is None else missing.problem,
                "hint": None if missing is None else missing.hint,
            }
        )
    return found


def _show_types(types: list[dict[str, Any]]) -> None:
    rows = []
    for each in types:
        package = " ".join(filter(None, (each["extra"] or each["package"], each["version"])))
        abilities = (_word(each[name]) for name in ("folders", "steps", "pull"))
        secrets = "?" if each["secrets"] is None else ", ".join(each["secrets"]) or "none"
        rows.append((each["type"], package, *abilities, secrets, ", ".join(each["kinds"] or ["?"])))
    click.echo(table(("TYPE", "PACKAGE", "FOLDERS", "STEPS", "PULL", "SECRETS", "KINDS"), rows))
    for each in types:
        if each["problem"]:
            click.echo(wrap(click.style("! ", fg="red") + visible(each["problem"])))
            click.echo(wrap(visible(each["hint"]), "  "))


def _word(can: bool | None) -> str:
    return {True: _YES, False: _NO, None: "?"}[can]


def _configured(options: HomeOptions, config: Config) -> list[dict[str, Any]]:
    from hubqueue.config import credentials as keys
    from hubqueue.config.choice import choose_all

    credentials = keys.Credentials(options.home().credentials, os.environ)
    defaults = choose_all(config, credentials, None)
    return [
        {
            "name": name,
            "type": each.type,
            "address": safe_url(each.url) or None,
            "key": _has_key(credentials, each),
            "default": each in defaults,
        }
        for name, each in sorted(config.destinations.items())
    ]


def _has_key(credentials: Credentials, target: DestinationSettings) -> bool | None:
    """Whether there is a key that may be sent; None where none is needed, or where that is unknown."""
    from hubqueue.config.registry import absent, declaration

    if not declaration(target.type).secrets:
        return None
    try:
        return credentials.has_some(target) if absent(target.type) else bool(credentials.keys(target))
    except CredentialsError:
        return None
