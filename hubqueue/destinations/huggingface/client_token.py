"""Which token is used, and which account a run has with it (decision 0033).

Promises that this reads variables and asks whether a file exists, nothing more: it is called when a training starts. The
token itself is read by the vendor's library, in the worker, when something is sent: it may have to be renewed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

_OTHER_SOURCES = ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN")
_PREFIX = "hf-client-"


def token_path(environ: Mapping[str, str]) -> Path:
    """Where `hf auth login` keeps the token."""
    own = environ.get("HOME") or os.path.expanduser("~")
    cache = environ.get("XDG_CACHE_HOME") or f"{own}/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    path = os.path.expandvars(environ.get("HF_TOKEN_PATH") or f"{home}/token")
    return Path(f"{own}{path[1:]}" if path.startswith("~/") else path)


def kept_by_the_client(environ: Mapping[str, str]) -> str:
    """A stand-in for the token that the vendor's library knows; empty if it knows none.

    It stays the same when the token is renewed, so that a run keeps its account.
    """
    path = token_path(environ)
    if not path.is_file() and not any(environ.get(each) for each in _OTHER_SOURCES):
        return ""
    # A hash: every part of a key is masked in all texts, and a path has ordinary words.
    return _PREFIX + hashlib.sha256(f"hubqueue: the token of {path}".encode()).hexdigest()[:32]


def is_stand_in(key: str) -> bool:
    """Whether a key only says that the vendor's library has the token."""
    return key.startswith(_PREFIX)
