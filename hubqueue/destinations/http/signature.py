"""What proves a request to the server: the digest of its body, and the signature over its head. Pure rules.

The signature covers the method, the path below the API root with its query, the time, the digest of the body, the range of
the file and the Idempotency-Key. So a server knows from the head alone who sends which bytes where, before it reads them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

HEADER = "Hubqueue-Signature"
EMPTY = hashlib.sha256().digest()


def digest_field(sha256: bytes) -> str:
    """The value of `Content-Digest` and `Repr-Digest` (RFC 9530) for a SHA-256."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def sha256_of(field: str) -> str | None:
    """The SHA-256 in hex of such a value; None if it has none."""
    for each in field.split(","):
        name, _, value = each.strip().partition("=")
        if name.lower() == "sha-256" and len(value) > 2 and value[0] == value[-1] == ":":
            try:
                found = base64.b64decode(value[1:-1], validate=True)
            except ValueError:
                continue
            return found.hex() if len(found) == len(EMPTY) else None
    return None


def signature(
    key: str, *, at: int, method: str, target: str, digest: str, content_range: str, idempotency_key: str
) -> str:
    """The value of the header. `at` is in Unix seconds, `target` the path below the API root with its query.

    The other ones are the headers of the same request, empty if it does not have them.
    """
    text = "\n".join((method, target, str(at), digest, content_range, idempotency_key))
    return f"t={at},v1={hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()}"
