"""Identifies the account of a key without the key: a salted hash that the outbox may store.

A key has hundreds of random bits, so a plain keyed hash is enough to hide it. The salt only prevents the comparison of
two outboxes.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from urllib.parse import urlsplit

UNKNOWN = "?"
"""The account of a run whose key could not be read at its start. It differs from None (no key) and matches no key."""
_LENGTH = 24
_PORTS = {"http": 80, "https": 443}


def seal(key: str, salt: str) -> str:
    """The account of a key, as `SALT$HASH`."""
    return f"{salt}${_hash(salt, key)}"


def opens(key: str, account: str) -> bool:
    """Whether an account was made from this key."""
    salt, _, kept = account.rpartition("$")
    return hmac.compare_digest(_hash(salt, key), kept)


def origin(url: str) -> str:
    """The scheme, host and port that a key is sent to: `https://hub.example.com:8443`, without a default port.

    An address without a host, such as a path, is its own origin.
    """
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    return f"{parts.scheme}://{host}" + ("" if port in (None, _PORTS.get(parts.scheme)) else f":{port}")


@lru_cache(maxsize=256)
def _hash(salt: str, key: str) -> str:
    octets = key.encode("utf-8", "surrogatepass")
    return hmac.new(salt.encode(), octets, hashlib.sha256).hexdigest()[:_LENGTH]
