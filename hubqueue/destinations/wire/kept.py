"""The fields of a hub's response that are kept in a row: one check for every such field.

Promises that a field passes only as a short name or address without a key, a long part of one, a query, user info, a blank
or a control character, and that an address is http or https. Nothing else of a response is kept verbatim: reasons are
cleaned, and a signed URL is used within its attempt and never stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeGuard
from urllib.parse import urlsplit

from hubqueue.domain.redact import contains_secret, has_key_form

_ID = re.compile(r"[A-Za-z0-9_-]+")
# Visible ASCII but double quotes, angle brackets, `?`, `#`, `@`, `\`, `^`, backtick and braces.
_NAME = re.compile(r"[!$%&'()*+,./0-9:;=A-Z\[\]_a-z|~-]+")
_LONGEST_ADDRESS = 500
_LONGEST_NAME = 2048


def is_kept_id(found: object, secrets: Iterable[str], *, longest: int = 128) -> TypeGuard[str]:
    """Whether it can be kept as an id: letters, digits, `-` and `_`."""
    return _is_short(found, _ID, longest) and _is_harmless(found, secrets)


def is_kept_name(found: object, secrets: Iterable[str], *, longest: int = _LONGEST_NAME) -> TypeGuard[str]:
    """Whether it can be kept as the name of an object or a path in a storage, or as an agent's identity."""
    return _is_short(found, _NAME, longest) and _is_harmless(found, secrets)


def is_kept_address(found: object, secrets: Iterable[str]) -> TypeGuard[str]:
    """Whether it can be kept, and shown to a person, as an address on the web."""
    if not _is_short(found, _NAME, _LONGEST_ADDRESS):
        return False
    try:
        parts = urlsplit(found)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and _is_harmless(found, secrets)


def _is_short(found: object, form: re.Pattern[str], longest: int) -> TypeGuard[str]:
    return isinstance(found, str) and 0 < len(found) <= longest and form.fullmatch(found) is not None


def _is_harmless(text: str, secrets: Iterable[str]) -> bool:
    return not contains_secret(text, secrets) and not has_key_form(text)
