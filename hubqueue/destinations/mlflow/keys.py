"""How a request carries a key: a token, or a user and a password.

A key with a colon is `USER:PASSWORD`; a token has no colon (RFC 6750). So one secret serves both, and it is masked, stored
and tried like any other one.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from hubqueue.destinations.base import Key
from hubqueue.domain.redact import remember

_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
# The file of MLflow's own clients, below the home of the user.
_FILE = Path(".mlflow") / "credentials"
_LARGEST = 64 * 1024


def authorization(key: Key) -> Mapping[str, str]:
    """The header that carries a key."""
    user, colon, password = key.partition(":")
    if not colon:
        return {"Authorization": f"Bearer {key}"}
    # A server may repeat the password without the user.
    remember((password,))
    octets = f"{user}:{password}".encode()
    return {"Authorization": f"Basic {b64encode(octets).decode()}"}


def borrowed(environ: Mapping[str, str]) -> str:
    """The user and the password of MLflow's own clients: by variables, else in their file. Empty without both."""
    found = _of_file(environ)
    user, password = (environ.get(each) or found.get(each.lower(), "") for each in (_USER, _PASSWORD))
    return f"{user}:{password}" if user and password else ""


def _of_file(environ: Mapping[str, str]) -> Mapping[str, str]:
    home = environ.get("HOME") or environ.get("USERPROFILE")
    if not home:
        return {}
    try:
        with (Path(home) / _FILE).open(encoding="utf-8") as file:
            text = file.read(_LARGEST)
    except (OSError, ValueError):
        return {}
    import configparser  # slow to load, and seldom needed

    try:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(text)
        return dict(parser["mlflow"]) if parser.has_section("mlflow") else {}
    except configparser.Error:
        return {}
