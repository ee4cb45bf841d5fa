"""The destinations of a run: those that it names, else the one that can take it."""

from __future__ import annotations

from collections.abc import Sequence

from hubqueue.config.config import Config
from hubqueue.config.credentials import Credentials
from hubqueue.config.registry import absent, declaration
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import ConfigError, CredentialsError


def choose_all(
    config: Config,
    credentials: Credentials,
    named: Sequence[str] | None,
    *,
    model: str = "",
    guess: bool = True,
) -> tuple[DestinationSettings, ...]:
    """The destinations with these names, else the default ones, else the one that `choose` finds. Raises as it does."""
    names = named if named is not None else config.defaults if config.default_named else ()
    if names:
        return tuple(config.destination(each) for each in names)
    return (choose(config, credentials, None, model=model, guess=guess),)


def choose(
    config: Config, credentials: Credentials, named: str | None, *, model: str = "", guess: bool = True
) -> DestinationSettings:
    """The destination called `named`, else the default one of the configuration.

    If the configuration names no default: one that recognizes the model's identifier as its own; then one whose address
    a variable names; then one that has a key; else the usual one. Raises `ConfigError` for an unknown name.

    Keys that cannot be read count as missing, so that a training can begin. Without `guess` they raise `ConfigError` where
    they would decide.
    """
    if named is not None or config.default_named:
        return config.destination(named)
    open_to = list(config.destinations.values())
    open_to = [each for each in open_to if declaration(each.type).recognizes(model)] or open_to
    open_to = [each for each in open_to if each.url_named] or open_to
    if len(open_to) > 1:
        open_to = [each for each in open_to if _has_key(credentials, each, guess=guess)] or open_to
    default = config.destination()
    return default if default in open_to else open_to[0]


def _has_key(credentials: Credentials, target: DestinationSettings, *, guess: bool) -> bool:
    try:
        if absent(target.type) is not None:
            return credentials.has_some(target)  # else its runs would go to another destination meanwhile
        return bool(credentials.keys(target)) or not declaration(target.type).needs_key
    except CredentialsError as error:
        if guess:
            return False
        raise ConfigError(
            (str(error),),
            hint=f"{error.hint or 'hubqueue check finds out why'}; or name the destination: --to",
        ) from error
