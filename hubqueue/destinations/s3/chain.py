"""Which credentials a bucket is used with, and which account a run has with them (decision 0028).

Promises that this reads variables only: it is called when a training starts. Everything else that the AWS chain may need
(files, a login, the network) is left to boto3, in the worker, when something is sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from hubqueue.config.declaration import Key, Secret

_ID, _SECRET, _TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
# The order of botocore.
_PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")
SECRET = "secret_access_key"  # noqa: S105 - the name of a secret
"""The name of the second secret."""


def profile(environ: Mapping[str, str]) -> str:
    """The profile of the AWS configuration that boto3 uses."""
    return next((environ[each] for each in _PROFILES if environ.get(each)), "default")


def _placeholder(what: str) -> str:
    # A hash: every part of a key is masked in all texts, and the name of a profile may be an ordinary word.
    return "aws-" + hashlib.sha256(f"hubqueue: {what}".encode()).hexdigest()[:32]


_CHAIN = _placeholder("the credentials of the AWS chain")


def _long_term(environ: Mapping[str, str]) -> bool:
    """Whether the variables have a key that does not expire."""
    return bool(environ.get(_ID) and environ.get(_SECRET)) and not environ.get(_TOKEN)


def _access_key_id(environ: Mapping[str, str]) -> str:
    return environ[_ID] if _long_term(environ) else _placeholder(f"profile {profile(environ)}")


def _secret_access_key(environ: Mapping[str, str]) -> str:
    return environ[_SECRET] if _long_term(environ) else _CHAIN


def is_chain(key: Key) -> bool:
    """Whether a key only says that boto3 finds the credentials."""
    return key.others.get(SECRET) == _CHAIN


def described(key: Key) -> str:
    """Where the credentials of a key come from, for a reason."""
    return f"the AWS profile {profile(os.environ)!r}" if is_chain(key) else "the access key"


# A signature shows no secret to the server, so these may be used for any address.
SECRETS = (
    Secret("access_key_id", borrowed=_access_key_id, anywhere=True),
    Secret(SECRET, borrowed=_secret_access_key, anywhere=True),
)
