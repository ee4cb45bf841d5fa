"""The forms that a setting can have: how its text in the environment is read, and which values it takes.

Promises that a refusal says what is wanted without repeating what was written: it could be a key. Refuses to
touch anything outside the value: no file is looked at, no host is asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

MAX_SECONDS = 10 * 365 * 86_400
MAX_COUNT = 2**63 - 1  # what a database column holds

_LOOPBACK = IPv4Network("127.0.0.0/8")
_WORDS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_KINDS = (
    (bool, "a boolean"),
    (int, "a whole number"),
    (float, "a fraction"),
    (str, "a string"),
    (dict, "a table"),
    (list, "an array"),
)
# A name or an IP address; which of them exist is not a question of form.
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9.])?|[0-9a-f:.]*:[0-9a-f:.]*")
_HOST_AND_PORT = re.compile(
    rf"(?:{_HOST.pattern})|[a-z0-9][a-z0-9._-]*:[1-9][0-9]{{0,4}}|\[[0-9a-f:.]+\]:[1-9][0-9]{{0,4}}"
)


class Refused(ValueError):
    """A value that cannot be used. Its text goes on after the name of the setting: "must be …"."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody wrote it. `label` is how a problem names it: a key of the file or a variable."""

    value: object
    label: str
    in_file: bool
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Form:
    """`check` makes the setting of what was given or raises `Refused`; `literal` reads a variable's text."""

    check: Callable[[Given], object]
    literal: Callable[[str], object] = str


def kind_of(value: object) -> str:
    """The TOML type of a value, in words."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "a date or time")


def seconds(*, zero: bool = True) -> Form:
    """A duration: a whole or fractional number of seconds."""

    def check(given: Given) -> timedelta:
        value = given.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"must be a number of seconds, not {kind_of(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused("must be a finite number of seconds")
        if value > MAX_SECONDS:
            raise Refused(f"must be at most {MAX_SECONDS} seconds (ten years)")
        # Below a microsecond nothing is left of a duration: that is a zero, too.
        if value < 0 or not (zero or timedelta(seconds=value)):
            raise Refused(f"must be {'0 or more' if zero else 'more than 0'} seconds")
        return timedelta(seconds=value)

    return Form(check, _number)


def count(unit: str, *, least: int = 1) -> Form:
    """A whole number of `unit`."""

    def check(given: Given) -> int:
        value = given.value
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(f"must be a whole number of {unit}, not {kind_of(value)}")
        if value < least:
            raise Refused(f"must be {least} or more {unit}")
        if value > MAX_COUNT:
            raise Refused(f"must be at most {MAX_COUNT} {unit}")
        return value

    return Form(check, _number)


def choice(*words: str) -> Form:
    """One of a few words."""

    def check(given: Given) -> str:
        if given.value not in words:
            raise Refused(f"must be {' or '.join(repr(word) for word in words)}")
        return str(given.value)

    return Form(check)


def flag() -> Form:
    """true or false."""

    def check(given: Given) -> bool:
        if not isinstance(given.value, bool):
            raise Refused(f"must be true or false, not {kind_of(given.value)}")
        return given.value

    return Form(check, lambda text: _WORDS.get(text.strip().lower(), text))


def text() -> Form:
    """Any text but an empty one."""
    return Form(_text)


def path() -> Form:
    """An absolute path; `~/` is the home directory of the user."""

    def check(given: Given) -> Path:
        written = _text(given)
        user_home = given.environ.get("HOME") or given.environ.get("USERPROFILE")
        found = Path(user_home, written[2:]) if user_home and written.startswith("~/") else Path(written)
        if "\0" in written or not found.is_absolute():
            raise Refused("must be an absolute path, or one that begins with ~/")
        return found

    return Form(check)


def web_address() -> Form:
    """An http or https URL that is a root: no user info, no query, no fragment. The last slash goes."""
    return Form(lambda given: _address(given).geturl().rstrip("/"))


def hosts() -> Form:
    """Names of hosts, with a port where it is not 443: an array, or in a variable a text with commas between them."""

    def check(given: Given) -> tuple[str, ...]:
        value = given.value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise Refused(f"must be an array of host names, not {kind_of(value)}")
        found = tuple(each.strip().lower() for each in value if each.strip())
        if not all(_HOST_AND_PORT.fullmatch(each) for each in found):
            raise Refused("must be host names such as storage.example.com or storage.example.com:9000")
        return found

    return Form(check, lambda written: written.split(","))


def proxy_address() -> Form:
    """The URL of an http or https proxy. User and password may only come from the environment."""
    return Form(lambda given: _address(given, user_info=not given.in_file).geturl().rstrip("/"))


def database_address() -> Form:
    """A database URL. The storage knows the details; here only what is certainly none is refused."""

    def check(given: Given) -> str:
        written = _text(given)
        if not re.match(r"(sqlite|postgresql)(\+[a-z0-9]+)?://", written):
            raise Refused("must be a database URL: sqlite:///PATH or postgresql+psycopg://HOST/NAME")
        return written

    return Form(check)


def is_plain_remote(url: str, proxy: str | None = None) -> bool:
    """Whether this (checked) URL would carry a key over a network unencrypted, directly or by a proxy elsewhere.

    The way to the proxy may be encrypted: it reads what it passes on.
    """
    parts, hosts = urlsplit(url), [urlsplit(each).hostname or "" for each in (url, proxy) if each]
    return parts.scheme == "http" and not all(map(_is_loopback, hosts))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address == IPv6Address("::1") or (address.version == 4 and address in _LOOPBACK)


def _address(given: Given, *, user_info: bool = False) -> SplitResult:
    written = _text(given)
    # urlsplit drops some of these silently, and no two programs agree on a backslash.
    if not re.fullmatch(r"[!-\[\]-~]+", written):
        raise Refused("must be a URL without blanks, backslashes or letters outside ASCII")
    try:
        parts = urlsplit(written)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Refused("must be a URL like https://host or https://host:8443") from None
    if parts.scheme not in ("http", "https") or port == 0 or not _HOST.fullmatch(host or ""):
        raise Refused("must be an http:// or https:// URL with a host")
    if "@" in parts.netloc and not user_info:
        raise Refused("must not have a user or password in it")
    if "?" in written or "#" in written:
        raise Refused("must not have a query or fragment")
    return parts


def _text(given: Given) -> str:
    if not isinstance(given.value, str):
        raise Refused(f"must be a string, not {kind_of(given.value)}")
    if not given.value.strip():
        raise Refused("must not be empty")
    return given.value


def _number(written: str) -> object:
    """The number that a variable holds, or its text where it is none: the check then says what is wanted."""
    # Shorter than what Python refuses to read, and no form of Python's own (1_000 is TOML too).
    if not re.fullmatch(r"[+-]?[0-9_.eE+-]{1,40}|[+-]?(inf|nan)", written.strip()):
        return written
    for read in (int, float):
        try:
            return read(written)
        except ValueError:
            continue
    return written
