"""Variables that other programs read and hubqueue does not: named where a failure may come from that.

Promises names only: the address of a proxy may carry a password.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.domain.outcome import FOREIGN, UNREAD, Blocked, Outcome, RetryLater, is_silence

CERTIFICATE, ENCRYPTION = "certificate refused", "the encrypted connection failed"
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY")
_T = TypeVar("_T")


def with_hint(found: _T, endpoint: Endpoint, environ: Mapping[str, str]) -> _T:
    """An outcome; its reason names the variable that may be missing here, and the setting that takes its place."""
    if not isinstance(found, Blocked | RetryLater):
        return found
    hint = _hint(found, endpoint, environ)
    return dataclasses.replace(found, reason=f"{found.reason}; {hint}") if hint else found


def _hint(found: Outcome, endpoint: Endpoint, environ: Mapping[str, str]) -> str | None:
    assert isinstance(found, Blocked | RetryLater)
    reason = found.reason
    encrypted = CERTIFICATE in reason or ENCRYPTION in reason
    if encrypted and endpoint.ca_bundle is None:
        named = next((each for each in _BUNDLES if environ.get(each)), None)
        if named is not None:
            return _words(named, endpoint, "ca_bundle")
    if endpoint.proxy is None and (encrypted or FOREIGN in reason or is_silence(reason)):
        named = _proxy(environ, endpoint)
        if named is not None:
            return _words(named, endpoint, "proxy")
    return None


def _words(variable: str, endpoint: Endpoint, setting: str) -> str:
    where = f"destinations.{endpoint.name}.{setting}" if endpoint.name else setting
    return f"{variable} {UNREAD}: set {where}"


def _proxy(environ: Mapping[str, str], endpoint: Endpoint) -> str | None:
    """The variable with the proxy of other programs; None without one, and for a host that needs none."""
    spelled = (spelling for name in _PROXIES for spelling in (name, name.lower()))
    named = next((each for each in spelled if environ.get(each)), None)
    exceptions = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    needless = any(_is_among(endpoint.host, each.strip().lower()) for each in exceptions.split(","))
    return None if needless else named


def _is_among(host: str, exception: str) -> bool:
    """Whether NO_PROXY has a host, its domain or everything. Networks (10.0.0.0/8) are not read: there the hint is shown needlessly."""
    domain = exception.removeprefix("*").removeprefix(".")
    return exception == "*" or (bool(domain) and (host == domain or host.endswith("." + domain)))
