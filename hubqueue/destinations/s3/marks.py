"""How an object shows that hubqueue has stored it, and with which content: its SHA-256, in the metadata of the object.

The server computes a hash of its own for an object that came in one request. For one that came in parts it has only a
hash of the hashes of the parts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

_NAME = "hubqueue-sha256"


def marked(sha256: str) -> dict[str, str]:
    """The metadata of an object with this hash, in hex."""
    return {_NAME: sha256}


def mark_of(found: Mapping[str, Any]) -> str | None:
    """The hash in the metadata of an object, in hex; None if hubqueue has not stored it. `found` is the response to HEAD."""
    named = {name.lower(): value for name, value in found.get("Metadata", {}).items()}
    return named.get(_NAME)


def hash_of(found: Mapping[str, Any]) -> str | None:
    """The hash of an object, in hex: the server's own one if it has one of the whole object, else the mark.

    A hash of hashes usually ends with the number of parts, but not on every server. The ETag of such an object always does.
    """
    stated = str(found.get("ChecksumSHA256", ""))
    in_parts = found.get("ChecksumType") == "COMPOSITE" or "-" in stated + str(found.get("ETag", ""))
    try:
        whole = "" if in_parts else base64.b64decode(stated, validate=True).hex()
    except binascii.Error:
        whole = ""
    return whole if len(whole) == 64 else mark_of(found)


def in_base64(digest: bytes) -> str:
    """A hash as the headers of S3 carry it."""
    return base64.b64encode(digest).decode()


def composite(digests: Sequence[bytes]) -> str:
    """What the server states of an object that came in parts with these hashes, without their number."""
    return in_base64(hashlib.sha256(b"".join(digests)).digest())
