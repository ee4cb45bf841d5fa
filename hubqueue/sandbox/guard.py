"""What is refused before anybody looks at a key: web pages of others that reach for this machine, and heads without end.

A browser sends a page's requests to whatever its name resolves to, the loopback included (DNS rebinding), so a sandbox
on the loopback serves requests for the loopback's own names only. Refuses nothing to programs that send no more
headers than they must.
"""

from __future__ import annotations

from email.message import Message
from ipaddress import ip_address
from urllib.parse import urlsplit

HEAD_LIMIT = 32 << 10
"""What all header fields of a request may have, in bytes."""

_READS = ("GET", "HEAD")
_FOREIGN_SITES = ("cross-site", "same-site")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, without asking anybody."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(method: str, path: str, headers: Message, *, loopback_only: bool) -> tuple[int, str] | None:
    """Why a request is refused whoever sends it, with the status; None when it may go on."""
    if sum(len(name) + len(value) for name, value in headers.items()) > HEAD_LIMIT:
        return 431, f"the header fields have more than {HEAD_LIMIT} bytes"
    named = headers.get_all("host", [])
    if len(named) > 1 or (loopback_only and named and not is_loopback(_host(named[0]))):
        return 421, "this sandbox is served under the names of its own machine only, such as localhost"
    if method in _READS and path != "/api" and not path.startswith("/api/"):
        return None  # a link to the page does no harm
    origin = headers.get("origin")
    if origin is not None and (not named or urlsplit(origin).netloc != named[0]):
        return 403, "requests from pages of other sites are refused"
    if headers.get("sec-fetch-site") in _FOREIGN_SITES:
        return 403, "requests from pages of other sites are refused"
    return None


def _host(named: str) -> str:
    try:
        return urlsplit(f"//{named}").hostname or ""
    except ValueError:
        return ""
