"""What is refused before the key is checked: requests from pages of other sites, and endless headers.

A browser sends a page's requests to any address that its name resolves to, the loopback included (DNS rebinding).
Therefore a sandbox on the loopback serves only requests for the loopback's own names. Programs that send only the
necessary headers are never refused.
"""

from __future__ import annotations

from email.message import Message
from ipaddress import ip_address
from urllib.parse import urlsplit

HEAD_LIMIT = 32 << 10
"""The largest total size of the header fields of a request, in bytes."""

_READS = ("GET", "HEAD")
_FOREIGN_SITES = ("cross-site", "same-site")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own. Does not query DNS."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(method: str, path: str, headers: Message, *, loopback_only: bool) -> tuple[int, str] | None:
    """The status and reason for refusing a request regardless of its key, or None."""
    if sum(len(name) + len(value) for name, value in headers.items()) > HEAD_LIMIT:
        return 431, f"the header fields have more than {HEAD_LIMIT} bytes"
    named = headers.get_all("host", [])
    if len(named) > 1 or (loopback_only and named and not is_loopback(_host(named[0]))):
        return 421, "this sandbox is served under the names of its own machine only, such as localhost"
    if method in _READS and path != "/api" and not path.startswith("/api/"):
        return None  # a link to the page is harmless
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
