"""The address of a database, and errors of its driver, without the passwords in them.

A password is before the host, or in the query (`?password=`, `sslpassword`, `passfile`, `options`). Drivers quote their
input in errors: the wrong address, the refused row. Neither is shown.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from hubqueue.domain.redact import LEAST_KEY, MASK, hide_key, hide_known, remember

# The query parameters that may be shown. The others are masked: drivers have dozens, and a name may be misspelt.
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
# Masked in the address but not removed from messages: these are no passwords, and their values are common words.
_NOT_SECRET = frozenset({"passfile", "service", "options", "sslkey", "sslcert", "sslrootcert", "sslcrl"})
# As SQLAlchemy reads it: a password may have any character but `@`.
_USER_INFO = re.compile(r"^([^/]*//)([^:/@]*)(?::([^@]*))?@")
# PostgreSQL appends these to its message: the refused row, the values of a statement.
_VALUES = re.compile(r"\n(?:DETAIL|CONTEXT):.*", re.DOTALL)
_LONGEST_MESSAGE = 4000


class Address:
    """The address of a database. This process masks its passwords in all that it writes."""

    def __init__(self, where: str | Path) -> None:
        # Nothing in the path of a file is a password or a query.
        self.shown = f"sqlite:///{where}" if isinstance(where, Path) else _shown(where)
        self._secrets = () if isinstance(where, Path) else _secrets_in(where)
        remember(self._secrets)

    def __repr__(self) -> str:
        return f"<Address {self.shown}>"

    def scrub(self, error: BaseException) -> None:
        """Remove the passwords, and the values of statements, from an error and from its causes."""
        seen, waiting = set[int](), [error]
        while waiting:
            each = waiting.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            each.args = tuple(self._scrubbed(part) if isinstance(part, str) else part for part in each.args)
            if hasattr(each, "hide_parameters"):  # an error of SQLAlchemy
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
    """`url` with its password and all but the harmless part of its query masked."""
    base, mark, query = _USER_INFO.sub(rf"\1{MASK}@", url).partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")] if mark else []
    kept = [
        f"{name}={value if name.lower() in _SHOWN else MASK}" if equals else MASK
        for name, equals, value in pairs
    ]
    return hide_key(base + mark + "&".join(kept))


def _secrets_in(url: str) -> tuple[str, ...]:
    """Its passwords, as they are written and decoded."""
    info = _USER_INFO.match(url)
    found = [info[3] or "", unquote(info[3] or "")] if info else []
    for pair in _USER_INFO.sub("", url).partition("?")[2].split("&"):
        name, _, value = pair.partition("=")
        if name.lower() not in _SHOWN | _NOT_SECRET:
            found += [value, *(each for _, each in parse_qsl(pair))]
    return tuple(dict.fromkeys(each for each in found if each))
