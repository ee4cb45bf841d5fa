"""Keys: from the environment, then from credentials.toml. They are never in the outbox, in logs or in arguments."""

from __future__ import annotations

import os
import re
import secrets
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hubqueue.errors import CredentialsError, OutboxUnavailable
from hubqueue.home import open_private, sync_folder
from hubqueue.ownership import read_trusted
from hubqueue.ultralytics_settings import borrowed_key

# Variables that the hubs' own clients read.
_KEY_OF_TYPE = {"hub": "HUB_API_KEY", "platform": "ULTRALYTICS_API_KEY"}
_KEY = re.compile(r"[!#-\[\]-~]{1,512}")  # printable ASCII without blank, quote and backslash
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Credentials:
    """The keys of one home. Its repr shows none."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path, self._environ = path, environ
        self._seen: tuple[int, int] | None = None
        self._stored: dict[str, str] = {}

    def keys(self, destination: str, type: str) -> tuple[str, ...]:
        """The keys to try for a destination, in order.

        HUBQUEUE_KEY_<DESTINATION>, the variable of the hub's own client, credentials.toml, which is read again
        when it has changed, then the settings of the ultralytics package. Raises `CredentialsError` when
        credentials.toml cannot be read.
        """
        own = "HUBQUEUE_KEY_" + re.sub(r"[^A-Z0-9]", "_", destination.upper())
        found = [self._environ.get(own, ""), self._environ.get(_KEY_OF_TYPE.get(type, ""), "")]
        found += [self._load().get(destination, ""), borrowed_key(self._environ, type)]
        return tuple(dict.fromkeys(key.strip() for key in found if key.strip()))

    def store(self, destination: str, key: str) -> None:
        """Keep a key for a destination, replacing the one before. Raises `CredentialsError`."""
        if not _KEY.fullmatch(key):
            hint = "copy it again: a key is one word of letters, digits and signs"
            raise CredentialsError(f"that is not a key for {destination}", hint=hint)
        self._write({**self._load(), destination: key})

    def forget(self, destination: str) -> None:
        """Drop the stored key of a destination."""
        self._write({name: key for name, key in self._load().items() if name != destination})

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the file, a line each."""
        try:
            found = self._path.lstat()
        except OSError:
            return ()
        if stat.S_ISLNK(found.st_mode):
            return (f"{self._path} is a symbolic link",)
        wrong = []
        if os.name != "nt" and stat.S_IMODE(found.st_mode) & 0o077:
            wrong.append(f"{self._path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o})")
        try:
            self._load()
        except CredentialsError as error:
            wrong.append(str(error))
        return tuple(wrong)

    def __repr__(self) -> str:
        return f"<Credentials of {self._path}>"

    def _load(self) -> dict[str, str]:
        try:
            content, found = read_trusted(self._path, follow=False)
        except FileNotFoundError:
            self._seen, self._stored = None, {}
            return {}
        except OSError as error:
            raise CredentialsError(
                f"cannot read {self._path}: {error.strerror}", hint="hubqueue check"
            ) from error
        except OutboxUnavailable as error:
            raise CredentialsError(str(error), hint=error.hint) from error
        version = (found.st_mtime_ns, found.st_ino)
        if version == self._seen:
            return self._stored
        try:
            tables = tomllib.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            # Not chained: the parser's message may quote the line with the key.
            hint = f"remove it and store the keys again: rm {self._path}; hubqueue login"
            raise CredentialsError(f"{self._path} is not valid TOML", hint=hint) from None
        stored = {name: table.get("key") for name, table in tables.items() if isinstance(table, dict)}
        self._stored = {name: key for name, key in stored.items() if isinstance(key, str)}
        self._seen = version
        return self._stored

    def _write(self, keys: Mapping[str, str]) -> None:
        lines = ["# Keys of hubqueue. Written by `hubqueue login`; keep it private.\n"]
        for name, key in sorted(keys.items()):
            table = name if _NAME.fullmatch(name) else f'"{name}"'
            lines.append(f'\n[{table}]\nkey = "{key}"\n')
        draft = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(
                open_private(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="ascii"
            ) as file:
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise CredentialsError(
                f"cannot write {self._path}: {error.strerror}", hint="hubqueue check"
            ) from error
