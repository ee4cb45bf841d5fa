"""The address of a database, and errors of its driver, without the passwords in them.

A password stands before the host, or in the query (`?password=`, `sslpassword`, `passfile`, `options`). Drivers quote
what they were given: the address that is wrong, the row that is refused. What leaves here shows neither.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from hubqueue.domain.redact import LEAST_KEY, MASK, hide_key, hide_known, remember

# What may be shown of a query. Everything else is masked: a driver has dozens of words, and a typing error has no name.
_SHOWN = frozenset(
    {
        "host",
        "port",
        "dbname",
        "user",
        "sslmode",
        "application_name",
        "connect_timeout",
        "target_session_attrs",
    }
)
# Masked too, and no passwords: their words may stand in any message.
_PLACES = frozenset({"passfile", "service", "options", "sslkey", "sslcert", "sslrootcert", "sslcrl"})
# As SQLAlchemy reads it: a password may have any sign but `@`.
_USER_INFO = re.compile(r"^([^/]*//)([^:/@]*)(?::([^@]*))?@")
# What PostgreSQL puts behind its message: the refused row, the values of a statement.
_VALUES = re.compile(r"\n(?:DETAIL|CONTEXT):.*", re.DOTALL)
_LONGEST_MESSAGE = 4000


class Address:
    """The address of a database. Its passwords are masked in all that this process writes."""

    def __init__(self, url: str) -> None:
        self.shown = _shown(url)
        self._secrets = () if url.startswith("sqlite") else _secrets_in(url)
        remember(self._secrets)

    def __repr__(self) -> str:
        return f"<Address {self.shown}>"

    def scrub(self, error: BaseException) -> None:
        """Take the passwords, and the values of statements, out of an error and of all that it came from."""
        seen, waiting = set[int](), [error]
        while waiting:
            each = waiting.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            each.args = tuple(self._scrubbed(part) if isinstance(part, str) else part for part in each.args)
            if hasattr(each, "hide_parameters"):  # one of SQLAlchemy's
                each.hide_parameters, each.params = True, None  # type: ignore[attr-defined]
            inner = (getattr(each, "orig", None), each.__cause__, each.__context__)
            waiting += [found for found in inner if isinstance(found, BaseException)]

    def _scrubbed(self, text: str) -> str:
        text = hide_known(_VALUES.sub("", text)[:_LONGEST_MESSAGE], self._secrets)
        for short in self._secrets:
            if len(short) < LEAST_KEY:
                text = re.sub(rf"(?<![0-9A-Za-z]){re.escape(short)}(?![0-9A-Za-z])", MASK, text)
        return hide_key(text)


def _shown(url: str) -> str:
    """`url` without its password, and with the harmless part of its query only."""
    place, mark, query = _USER_INFO.sub(rf"\1{MASK}@", url).partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")] if mark else []
    kept = [
        f"{name}={value if name.lower() in _SHOWN else MASK}" if equals else MASK
        for name, equals, value in pairs
    ]
    return hide_key(place + mark + "&".join(kept))


def _secrets_in(url: str) -> tuple[str, ...]:
    """Its passwords, as they are written and as they are meant."""
    info = _USER_INFO.match(url)
    found = [info[3] or "", unquote(info[3] or "")] if info else []
    for pair in _USER_INFO.sub("", url).partition("?")[2].split("&"):
        name, _, value = pair.partition("=")
        if name.lower() not in _SHOWN | _PLACES:
            found += [value, *(each for _, each in parse_qsl(pair))]
    return tuple(dict.fromkeys(each for each in found if each))
