"""The key of a training session at a HUB."""

from __future__ import annotations

import os

from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.reader import DestinationSettings
from hubqueue.domain.errors import CredentialsError
from hubqueue.producer.survival import logger

_LOG = logger()


class Account:
    """The key of a session. `authenticated` means that there is a key; only the worker learns whether it is accepted."""

    def __init__(self, home: Home, target: DestinationSettings, key: str | None) -> None:
        self._key, self._target = key, target
        self._credentials = Credentials(home.credentials, os.environ)

    @property
    def authenticated(self) -> bool:
        """Whether there is a key to send with."""
        try:
            return bool(self.keys())
        except CredentialsError as error:
            _LOG.warning("%s", error)
            return False

    def keys(self) -> tuple[str, ...]:
        """The keys to try, in order. Raises `CredentialsError`."""
        found = self._credentials.keys(self._target)
        return tuple(dict.fromkeys((self._key, *found))) if self._key else found

    def __repr__(self) -> str:
        return f"<Account at {self._target.name}>"
