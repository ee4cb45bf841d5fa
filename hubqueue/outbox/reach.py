"""Who can send what a run owes: a living worker, this environment, or neither, and then what a person can do.

A run belongs to an address and an account (see `addresses.py`). Runs that this environment does not match are not sent;
the reason names both addresses, and never a key.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubqueue.config.credentials import own_variables, usual_variables
from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import absent, of_row
from hubqueue.config.setting import settings_of
from hubqueue.domain.account import UNKNOWN
from hubqueue.domain.errors import CredentialsError
from hubqueue.domain.outcome import ADVICE, CLOCK, FOREIGN, UNREAD
from hubqueue.domain.redact import safe_url
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.locks import is_held

if TYPE_CHECKING:
    from hubqueue.outbox.opened import Opened


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why this environment cannot send for a row of `destinations`, and what to do. `key` says that only a key is missing."""

    what: str
    hint: str
    key: bool = False


def is_served(outbox: Opened, name: str) -> bool:
    """Whether a living worker of this home sends for a row. Takes microseconds."""
    return is_held(outbox.serving_lock(name))


def served(outbox: Opened) -> frozenset[str]:
    """The rows that a living worker of this home has the key for."""
    rows = outbox.addresses.all()
    return frozenset(
        each.name
        for each in rows
        if (each.account is not None or _needs_no_key(each)) and is_served(outbox, each.name)
    )


def obstacle(outbox: Opened, address: Address) -> Obstacle | None:
    """Why this environment cannot send for a row; None when it can."""
    target = outbox.config.destinations.get(address.label)
    if target is None:
        known, shown = settings_of(of_row(address.type).settings), safe_url(address.url)
        key = next((each for each in ("url", "path") if each in known), None)
        what = f"with {key} = {shown!r}" if key else f"of type {address.type!r} for {shown}"
        hint = f"add [destinations.{address.label}] {what} to the configuration"
        return Obstacle(f"destination {address.label} ({safe_url(address.url)}) is not configured here", hint)
    missing = absent(target.type)
    if missing is not None:
        return Obstacle(missing.problem, missing.hint)
    if not address.fits(target):
        what = f"{address.label} was at {safe_url(address.url)} when they were saved, and is at {safe_url(target.url)} here"
        hint = f"set that address and its key, or send them to the new one: hubqueue readdress {address.name}"
        return Obstacle(what, hint)
    if _needs_no_key(address):
        return None
    if not of_row(address.type).secrets:
        what = f"they were started with a key for {address.label}, which needs no key now"
        return Obstacle(what, f"send them without one: hubqueue readdress {address.name}")
    try:
        keys: Collection[str] = outbox.credentials.keys(target)
    except CredentialsError as error:
        return Obstacle(str(error), error.hint or "hubqueue check finds out why", key=True)
    if not keys:
        return no_key(outbox, target)
    if address.account == UNKNOWN:
        what = f"the key for {address.label} could not be read when they began"
        hint = f"store it: hubqueue login {address.label}; or send them with this one: hubqueue readdress {address.name}"
        return Obstacle(what, hint)
    if address.account is not None and address.key_among(tuple(keys)) is None:
        what = f"they were started with another key for {address.label} ({safe_url(address.url)}) than this shell has"
        hint = f"send them with the other key, or with this one: hubqueue readdress {address.name}"
        return Obstacle(what, hint)
    return None


def _needs_no_key(address: Address) -> bool:
    return address.account is None and not of_row(address.type).needs_key


def no_key(outbox: Opened, target: DestinationSettings) -> Obstacle:
    """The obstacle of a destination without a complete key. It also names a key that may not be sent to this address."""
    try:
        incomplete, elsewhere = outbox.credentials.incomplete(target), outbox.credentials.elsewhere(target)
    except CredentialsError:
        incomplete = elsewhere = None
    if incomplete is not None:
        why, hint = incomplete
        return Obstacle(f"there is no key for {target.name}: {why}", hint, key=True)
    what = f"there is no key for {target.name}" + (f": {elsewhere}" if elsewhere else "")
    usual = [] if elsewhere else [each for each in usual_variables(target.type) if each]
    own = own_variables(target)
    variables = " and ".join(usual if len(usual) == len(own) else own)
    return Obstacle(what, f"hubqueue login {target.name}, or set {variables}", key=True)


def cure(destination: str, url: str, held: str) -> str:
    """The hint for a destination that is on hold, by the reason of the hold."""
    then = f"then: hubqueue resume {destination}"
    if (variable := _unread_in(held)) is not None:
        name, setting = variable
        return f"hubqueue does not read {name}: set {setting}, {then}"
    if ADVICE in held:
        return f"{held.partition(ADVICE)[2]}; {then}"
    if FOREIGN in held:
        return f"log in to the network, or check destinations.{destination}.url (now {safe_url(url)}) and the proxy"
    if "407 Proxy" in held:
        return f"set the user and the password in destinations.{destination}.proxy, by its variable"
    if "certificate" in held:
        return f"set destinations.{destination}.ca_bundle, or correct the clock of this machine; {then}"
    if held.startswith(CLOCK):
        return f"set the clock of this machine or of the server, {then}"
    if is_about_key(held):
        return f"hubqueue login {destination}"
    if held.startswith("the account "):
        return f"look at your plan and your account at {safe_url(url)}; {then}"
    return f"check destinations.{destination}.{_key_of(url)} (now {safe_url(url)}), {then}"


def _key_of(url: str) -> str:
    """The setting with the address of a destination: a folder has a path."""
    return "url" if "://" in url or not url else "path"


def is_explained(reason: str) -> bool:
    """Whether `cure` knows what to do about the reason of a failed attempt, which is tried again without that."""
    return any(each in reason for each in (UNREAD, FOREIGN, "407 Proxy"))


def _unread_in(reason: str) -> tuple[str, str] | None:
    """The variable that a reason names because hubqueue does not read it, and the setting in its place."""
    found = re.search(rf"(\w+) {UNREAD}: set (\S+)", reason)
    return None if found is None else (found[1], found[2])


def is_about_key(held: str | None) -> bool:
    """Whether a destination is on hold because of the key: refused, too short, or with invalid characters."""
    return held is not None and held.startswith("the key ")
