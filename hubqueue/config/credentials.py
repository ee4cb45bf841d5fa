"""Keys: from the environment, then from credentials.toml. They are never in the outbox, in logs or in arguments.

A key goes to the address that it was stored or named for, and nowhere else. A stored key is kept with its address. A
variable that names a destination is for that destination. The variables that the vendor's own clients read, and the key
that the ultralytics package keeps, are only for the vendor's address or for one that a variable names.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hubqueue.config.home import open_private, sync_folder
from hubqueue.config.ownership import read_trusted
from hubqueue.config.registry import declaration, vendors_url
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.account import origin
from hubqueue.domain.errors import CredentialsError, OutboxUnavailable
from hubqueue.domain.redact import LEAST_KEY

_KEY = re.compile(r"[!#-\[\]-~]{1,512}")  # printable ASCII without blank, quote and backslash
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Credentials:
    """The keys of one home. Its repr shows none."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path, self._environ = path, environ
        self._seen: tuple[int, int] | None = None
        self._stored: dict[str, dict[str, tuple[str, ...]]] = {}  # by destination, then by address

    def keys(self, target: DestinationSettings) -> tuple[str, ...]:
        """The keys that may be sent to a destination, in the order in which they are tried; the first is its account.

        HUBQUEUE_KEY_<DESTINATION>; the vendor's variable, for the destination that is called like its type; the key
        stored for this address. Where there is none of these: the vendor's variable, then the settings of the
        ultralytics package. credentials.toml is read again when it has changed; raises `CredentialsError` when it
        cannot be read and the environment has no key.
        """
        named, vendors = self._environ.get(own_variable(target.name), ""), self._vendors(target)
        found = [named, vendors if target.name == target.type else ""]
        try:
            found += self._kept(target)
        except CredentialsError:
            if not any(each.strip() for each in found):
                raise
        if not any(each.strip() for each in found):
            found = [vendors, _borrowed(target.type, self._environ) if _is_open(target) else ""]
        return tuple(dict.fromkeys(key.strip() for key in found if key.strip()))

    def stored(self, target: DestinationSettings) -> str | None:
        """The key that a person has stored for a destination at its address."""
        return next(iter(self._kept(target)), None)

    def elsewhere(self, target: DestinationSettings) -> str | None:
        """Why a key that is there is not for this destination, in one line; None where no key is kept back."""
        variable = usual_variable(target.type)
        if variable is not None and self._environ.get(variable, "").strip() and not _is_open(target):
            return f"{variable} is only for {_vendor(target.type)} or an address that a variable names"
        addresses = [each or _vendor(target.type) for each in self._load().get(target.name, {})]
        return f"the stored key is for {addresses[0]}" if addresses else None

    def store(self, target: DestinationSettings, key: str) -> None:
        """Keep a key for a destination at its address, replacing the one before. Raises `CredentialsError`."""
        self._keep(target, (key, *self._kept(target)[1:]))

    def add(self, target: DestinationSettings, key: str) -> None:
        """Keep one more key for a destination at its address, behind those that are there. Raises `CredentialsError`."""
        if key not in self._kept(target):
            self._keep(target, (*self._kept(target), key))

    def forget(self, destination: str) -> None:
        """Drop the stored keys of a destination."""
        self._write({name: keys for name, keys in self._load().items() if name != destination})

    def problems(self) -> tuple[tuple[str, str], ...]:
        """What is wrong with the file: a line and its hint each."""
        quoted = shlex.quote(str(self._path))
        try:
            found = self._path.lstat()
        except OSError:
            return ()
        if stat.S_ISLNK(found.st_mode):
            return ((f"{self._path} is a symbolic link", f"put the file itself there, mode 0600: {quoted}"),)
        wrong = []
        if os.name != "nt" and stat.S_IMODE(found.st_mode) & 0o077:
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            wrong.append((f"{self._path} can be read by others (mode {mode})", f"chmod 600 {quoted}"))
        try:
            self._load()
        except CredentialsError as error:
            wrong.append((str(error), error.hint or f"remove it: rm {quoted}"))
        return tuple(wrong)

    def _kept(self, target: DestinationSettings) -> tuple[str, ...]:
        """The stored keys for a destination at its address; those without an address are for the vendor's."""
        kept, address = self._load().get(target.name, {}), origin(target.url)
        return kept.get(address) or (kept.get("", ()) if address == _vendor(target.type) else ())

    def _keep(self, target: DestinationSettings, keys: tuple[str, ...]) -> None:
        for key in keys:
            check_key(target.name, key)
        kept = {name: dict(by_address) for name, by_address in self._load().items()}
        kept.setdefault(target.name, {})[origin(target.url)] = tuple(dict.fromkeys(keys))
        kept[target.name].pop("", None)  # now the address is known
        self._write(kept)

    def _vendors(self, target: DestinationSettings) -> str:
        return self._environ.get(usual_variable(target.type) or "", "") if _is_open(target) else ""

    def __repr__(self) -> str:
        return f"<Credentials of {self._path}>"

    def _load(self) -> dict[str, dict[str, tuple[str, ...]]]:
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
        self._stored = {name: _by_address(table) for name, table in tables.items() if isinstance(table, dict)}
        self._seen = version
        return self._stored

    def _write(self, keys: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        lines = ["# Keys of hubqueue. Written by `hubqueue login`; keep it private.\n"]
        for name, by_address in sorted(keys.items()):
            table = name if _NAME.fullmatch(name) else f'"{name}"'
            for address, (first, *others) in sorted(by_address.items()):
                lines.append(f'\n[{table}."{address}"]\n' if address else f"\n[{table}]\n")
                lines.append(f'key = "{first}"\n')
                if others:  # of identifiers that had a key in them
                    lines.append(f"secrets = {json.dumps(others)}\n")
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


def own_variable(destination: str) -> str:
    """The variable with the key of a destination: `HUBQUEUE_KEY_LAB`."""
    return "HUBQUEUE_KEY_" + re.sub(r"[^A-Z0-9]", "_", destination.upper())


def usual_variable(type: str) -> str | None:
    """The variable that the vendor's own clients read a key from."""
    return next((each.variable for each in declaration(type).secrets), None)


def check_key(destination: str, key: str) -> None:
    """Refuse what cannot be a key. Raises `CredentialsError`."""
    if not _KEY.fullmatch(key):
        hint = "a key has no spaces; please copy it again"
        raise CredentialsError(f"that is not a key for {destination}", hint=hint)
    if len(key) < LEAST_KEY:
        hint = "a shorter one could not be told from ordinary text, and be masked; please copy it again"
        raise CredentialsError(f"a key has at least {LEAST_KEY} characters", hint=hint)


def _by_address(table: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """The keys of a destination by the address they are for; an older hubqueue wrote none ("")."""
    tables = {"": table} | {address: each for address, each in table.items() if isinstance(each, dict)}
    found = {}
    for address, each in tables.items():
        others = each.get("secrets")
        keys = (each.get("key"), *(others if isinstance(others, list) else ()))
        if texts := tuple(key for key in keys if isinstance(key, str)):
            found[address] = texts
    return found


def _vendor(type: str) -> str:
    return origin(vendors_url(type))


def _borrowed(type: str, environ: Mapping[str, str]) -> str:
    return next((each.borrowed(environ) for each in declaration(type).secrets), "")


def _is_open(target: DestinationSettings) -> bool:
    """Whether the vendor's own variables and settings are for this address."""
    return target.url_named or origin(target.url) == _vendor(target.type)
