"""The forms of settings: how the text of a variable is read, which values are valid, how a value is written.

Promises that a refusal says what is expected without repeating the value: it could be a key. Looks at the value only:
reads no file and contacts no host.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from hubqueue.domain.quantities import SIZE, SPAN, read_size, read_span, written_size, written_span

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
# A name or an IP address. Whether it exists is not checked.
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9.])?|[0-9a-f:.]*:[0-9a-f:.]*")
_HOST_AND_PORT = re.compile(
    rf"(?:{_HOST.pattern})|[a-z0-9][a-z0-9._-]*:[1-9][0-9]{{0,4}}|\[[0-9a-f:.]+\]:[1-9][0-9]{{0,4}}"
)
_NOT_BLANK = {"type": "string", "pattern": r"\S"}
_WEB_ADDRESS = {
    "type": "string",
    "format": "uri",
    "pattern": r"^(?=[!-~]+$)[hH][tT][tT][pP][sS]?://[^@/?#\\]+(/[^?#\\]*)?$",
}


class Refused(ValueError):
    """A value that cannot be used. Its text continues the name of the setting: "must be …"."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written. `label` is its name in a problem: a key of the file or a variable."""

    value: object
    label: str
    in_file: bool
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Form:
    """`check` turns the given value into the setting or raises `Refused`; `literal` reads a variable's text.

    `unit` is its unit in the documents, `schema` the JSON Schema of its value in the file: it accepts all that `check`
    accepts, and refuses what it can. `written` turns a setting into its value in the file.
    """

    check: Callable[[Given], object]
    literal: Callable[[str], object] = str
    unit: str = "text"
    schema: Mapping[str, object] = field(default_factory=lambda: _NOT_BLANK)
    written: Callable[[Any], object] = lambda value: value


def kind_of(value: object) -> str:
    """The TOML type of a value, in words."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "a date or time")


def seconds(*, zero: bool = True) -> Form:
    """A duration: a whole or fractional number of seconds, or a text with units such as "15 min"."""

    def check(given: Given) -> timedelta:
        value = given.value
        if isinstance(value, str):
            value = read_span(value)
            if value is None:
                raise Refused('must be a number of seconds or a text such as "15 min"')
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f'must be a number of seconds or a text such as "15 min", not {kind_of(value)}')
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused("must be a finite number of seconds")
        if value > MAX_SECONDS:
            raise Refused(f"must be at most {MAX_SECONDS} seconds (ten years)")
        # A duration below a microsecond becomes zero.
        if value < 0 or not (zero or timedelta(seconds=value)):
            raise Refused(f"must be {'0 or more' if zero else 'more than 0'} seconds")
        return timedelta(seconds=value)

    least = {"minimum" if zero else "exclusiveMinimum": 0}
    number = {"type": "number", **least, "maximum": MAX_SECONDS}
    schema = {"anyOf": [number, {"type": "string", "pattern": f"^{SPAN}$"}]}
    return Form(check, _number, "seconds", schema, lambda value: written_span(value.total_seconds()))


def size(*, least: int = 1, unit: str = "bytes") -> Form:
    """A number of bytes: a whole number, or a text with a unit such as "20 GB" or "512 MiB"."""

    def check(given: Given) -> int:
        value = given.value
        if isinstance(value, str):
            value = read_size(value)
            if value is None:
                raise Refused(f'must be a whole number of {unit} or a text such as "20 GB"')
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(f'must be a whole number of {unit} or a text such as "20 GB", not {kind_of(value)}')
        return _between(value, least, unit)

    text = {"type": "string", "pattern": f"^{SIZE}$"}
    return Form(check, _number, unit, {"anyOf": [_whole(least), text]}, written_size)


def count(unit: str, *, least: int = 1) -> Form:
    """A whole number of `unit`."""

    def check(given: Given) -> int:
        value = given.value
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(f"must be a whole number of {unit}, not {kind_of(value)}")
        return _between(value, least, unit)

    return Form(check, _number, unit, _whole(least))


def _between(value: int, least: int, unit: str) -> int:
    if value < least:
        raise Refused(f"must be {least} or more {unit}")
    if value > MAX_COUNT:
        raise Refused(f"must be at most {MAX_COUNT} {unit}")
    return value


def _whole(least: int) -> dict[str, object]:
    return {"type": "integer", "minimum": least, "maximum": MAX_COUNT}


def choice(*words: str) -> Form:
    """One of a few words."""

    def check(given: Given) -> str:
        if given.value not in words:
            raise Refused(f"must be {' or '.join(repr(word) for word in words)}")
        return str(given.value)

    return Form(check, unit="word", schema={"enum": list(words)})


def flag() -> Form:
    """true or false."""

    def check(given: Given) -> bool:
        if not isinstance(given.value, bool):
            raise Refused(f"must be true or false, not {kind_of(given.value)}")
        return given.value

    schema = {"type": "boolean"}
    return Form(check, lambda text: _WORDS.get(text.strip().lower(), text), "yes or no", schema)


def text(unit: str = "text") -> Form:
    """Any text but an empty one."""
    return Form(_text, unit=unit)


def names() -> Form:
    """The name of a destination, or an array of different ones: in a variable a text, separated by commas."""

    def check(given: Given) -> str | tuple[str, ...]:
        value = given.value
        if not isinstance(value, list):
            return _text(given)
        if not value or not all(isinstance(each, str) and each.strip() for each in value):
            raise Refused("must be a name, or an array of names")
        found = tuple(each.strip() for each in value)
        if len(set(found)) < len(found):
            raise Refused("must not name a destination twice")
        return found if len(found) > 1 else found[0]

    array = {"type": "array", "items": _NOT_BLANK, "minItems": 1, "uniqueItems": True}
    return Form(
        check,
        lambda written: written.split(",") if "," in written else written,
        "name",
        {"anyOf": [_NOT_BLANK, array]},
        lambda value: value if isinstance(value, str) else list(value),
    )


def path() -> Form:
    """An absolute path; `~/` is the home directory of the user."""

    def check(given: Given) -> Path:
        written = _text(given)
        user_home = given.environ.get("HOME") or given.environ.get("USERPROFILE")
        found = Path(user_home, written[2:]) if user_home and written.startswith("~/") else Path(written)
        if "\0" in written or not found.is_absolute():
            raise Refused("must be an absolute path, or one that begins with ~/")
        if variable := unexpanded(written.removeprefix("~/")):
            raise Refused(f"has {variable} in it, which was not replaced by its value")
        return found

    schema = {"type": "string", "pattern": r"^(/|~/|[A-Za-z]:[\\/]|\\\\)"}
    return Form(check, unit="path", schema=schema, written=str)


def web_address() -> Form:
    """An http or https URL that is a root: no user info, no query, no fragment. The last slash is removed."""
    return Form(lambda given: _address(given).geturl().rstrip("/"), unit="URL", schema=_WEB_ADDRESS)


def hosts() -> Form:
    """Names of hosts, with a port if it is not 443: an array, or in a variable a text separated by commas."""

    def check(given: Given) -> tuple[str, ...]:
        value = given.value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise Refused(f"must be an array of host names, not {kind_of(value)}")
        found = tuple(each.strip().lower() for each in value if each.strip())
        if not all(_HOST_AND_PORT.fullmatch(each) for each in found):
            raise Refused("must be host names such as storage.example.com or storage.example.com:9000")
        return found

    item = {"type": "string", "pattern": r"^[^/?#@\\]*$"}
    return Form(check, lambda written: written.split(","), "hosts", {"type": "array", "items": item}, list)


def proxy_address() -> Form:
    """The URL of an http or https proxy. User and password may only come from the environment."""
    return Form(
        lambda given: _address(given, user_info=not given.in_file).geturl().rstrip("/"),
        unit="URL",
        schema=_WEB_ADDRESS,
    )


def database_address() -> Form:
    """A database URL. Only its scheme is checked here; the storage checks the rest."""

    def check(given: Given) -> str:
        written = _text(given)
        if not re.match(r"(sqlite|postgresql)(\+[a-z0-9]+)?://", written):
            raise Refused("must be a database URL: sqlite:////PATH or postgresql+psycopg://HOST/NAME")
        if written.startswith("sqlite"):
            # As for SQLAlchemy, all after the third slash is the path, and nothing in it is decoded.
            path = re.sub(r"^[a-z0-9+]+:///?", "", written)
            if not Path(path).is_absolute():
                raise Refused("must have an absolute path: sqlite:////PATH")
            if "?" in path or "\0" in path:
                raise Refused("must have no query; for a path with a question mark choose a home instead")
            if variable := unexpanded(path):
                raise Refused(f"has {variable} in it, which was not replaced by its value")
        return written

    schema = {"type": "string", "pattern": r"^(sqlite|postgresql)(\+[a-z0-9]+)?://"}
    return Form(check, unit="URL", schema=schema)


def unexpanded(path: str) -> str | None:
    """The `~name`, `$NAME` or `${NAME}` in a path that a shell would have replaced; None without any."""
    found = re.match(r"~[^/]*", path) or re.search(r"\$(\{[^}/]*\}?|[A-Za-z_][A-Za-z0-9_]*)", path)
    return None if found is None else found.group()


def is_plain_remote(url: str, proxy: str | None = None) -> bool:
    """Whether this (checked) URL would carry a key over a network unencrypted, directly or by a proxy elsewhere.

    An encrypted connection to the proxy changes nothing: the proxy reads what it forwards.
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
    """The number in a variable, or its text if it is not a number: `check` then says what is expected."""
    # Limited in length, since Python refuses very long numbers, and to the forms of TOML.
    if not re.fullmatch(r"[+-]?[0-9_.eE+-]{1,40}|[+-]?(inf|nan)", written.strip()):
        return written
    for read in (int, float):
        try:
            return read(written)
        except ValueError:
            continue
    return written
