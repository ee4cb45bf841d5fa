"""Keys: from the environment, then from credentials.toml. They are never in the outbox, in logs or in arguments.

A key goes only to the address that it was stored or named for. A stored key is kept with its address. A variable that
names a destination is for that destination. The variables that the vendor's own clients read, and the key that such a
client keeps, are only for the vendor's address or for one that a variable names.

A destination may need several secrets, as a bucket needs an id and a secret. All come from one source: an id of the
environment is never sent with a secret of the file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hubqueue.config.declaration import Key, Secret
from hubqueue.config.filesystem.ownership import read_trusted
from hubqueue.config.home import open_private, sync_folder
from hubqueue.config.names import own_variable
from hubqueue.config.registry import declaration, vendors_url
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.account import origin
from hubqueue.domain.errors import CredentialsError, OutboxUnavailable
from hubqueue.domain.redact import LEAST_KEY, remember

_KEY = re.compile(r"[!#-\[\]-~]{1,512}")  # printable ASCII without blank, quote and backslash
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FURTHER = "secrets"

_Values = tuple[str, ...]
"""The secrets of a destination from one source, in the declared order; empty texts for missing ones."""
_Table = Mapping[str, str | tuple[str, ...]]
"""What is stored for a destination at one address: its secrets by name, and further keys under `secrets`."""


class Credentials:
    """The keys of one home. Its repr shows none."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path, self._environ = path, environ
        self._seen: tuple[int, int] | None = None
        self._stored: dict[str, dict[str, _Table]] = {}  # by destination, then by address

    def keys(self, target: DestinationSettings) -> tuple[Key, ...]:
        """The keys that may be sent to a destination, in the order of trying; the first one is its account.

        Sources: HUBQUEUE_KEY_<DESTINATION>; the vendor's variable, if the destination has the name of its type; the key
        stored for this address. If all are missing: the vendor's variable, then the settings of the vendor's own client.
        A source that lacks one of several secrets is skipped. credentials.toml is read again when it has changed; raises
        `CredentialsError` when it cannot be read and the environment has no key. All keys are masked from now on.
        """
        named, vendors = self._of_environment(own_variables(target)), self._vendors(target)
        found = [named, vendors if target.name == target.type else ()]
        try:
            found += self._kept(target)
        except CredentialsError:
            if not any(map(_is_whole, found)):
                raise
        if not any(map(_is_whole, found)):
            found = [vendors, () if any(named) else _borrowed(target, self._environ)]
        names = [each.name for each in secrets_of(target)]
        keys = [
            Key(each[0], dict(zip(names[1:], each[1:], strict=True))) for each in found if _is_whole(each)
        ]
        for key in keys:
            remember(key.parts)
        # A key equals its first secret: a new secret of the same id is another key.
        return tuple({each.parts: each for each in keys}.values())

    def has_some(self, target: DestinationSettings) -> bool:
        """Whether any secret is there for a destination at its address, whatever its type calls it."""
        named = any(self._of_environment(own_variables(target)))
        return named or bool(self._load().get(target.name, {}).get(origin(target.url)))

    def stored(self, target: DestinationSettings) -> str | None:
        """The key that a person has stored for a destination at its address."""
        return next((first for first, *_ in self._kept(target)), None)

    def elsewhere(self, target: DestinationSettings) -> str | None:
        """Why an existing key is not for this destination, in one line; None if there is no such key."""
        variable = usual_variable(target.type)
        if variable is not None and self._environ.get(variable, "").strip() and not _is_open(target):
            vendor = f"{_vendor(target.type)} or " if vendors_url(target.type) else ""
            return f"{variable} is only for {vendor}an address that a variable names"
        addresses = [each or _vendor(target.type) for each in self._load().get(target.name, {})]
        addresses = [each for each in addresses if each != origin(target.url)]
        return f"the stored key is for {addresses[0]}" if addresses else None

    def incomplete(self, target: DestinationSettings) -> tuple[str, str] | None:
        """What is missing from an incomplete source, and how to set it; None if every source is complete or empty."""
        for variables, values in (
            (own_variables(target), self._of_environment(own_variables(target))),
            (_vendors_variables(target), self._vendors(target)),
        ):
            if any(values) and not _is_whole(values):
                there, missing = _parted(variables, values)
                return f"{there} is set, but {missing} is missing or invalid", f"set {missing}"
        for values in self._kept(target):
            if not _is_whole(values):
                there, missing = _parted([each.name for each in secrets_of(target)], values)
                return (
                    f"{self._path} has its {there}, but no valid {missing}",
                    f"hubqueue login {target.name}",
                )
        return None

    def store(self, target: DestinationSettings, key: str) -> None:
        """Keep a key for a destination at its address, replacing the one before. Raises `CredentialsError`.

        `key` is a `Key` if the destination needs several secrets.
        """
        others = key.others if isinstance(key, Key) else {}
        self._keep(target, key, others, [each[0] for each in self._kept(target)[1:]])

    def add(self, target: DestinationSettings, key: str) -> None:
        """Keep one more key for a destination at its address, after the existing ones. Raises `CredentialsError`."""
        kept = self._kept(target)
        firsts = [each[0] for each in kept]
        if key not in firsts:
            names = [each.name for each in secrets_of(target)]
            others = (
                {name: value for name, value in zip(names[1:], kept[0][1:], strict=True) if value}
                if kept
                else {}
            )
            first, *more = [*firsts, key]
            self._keep(target, first, others, more)

    def forget(self, destination: str) -> None:
        """Remove all that is stored for a destination."""
        self._write({name: each for name, each in self._load().items() if name != destination})

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

    def _kept(self, target: DestinationSettings) -> list[_Values]:
        """What is stored for a destination at its address; keys without an address are for the vendor's."""
        kept, address = self._load().get(target.name, {}), origin(target.url)
        table = kept.get(address) or (kept.get("", {}) if address == _vendor(target.type) else {})
        names = [each.name for each in secrets_of(target)]
        values = [_text(table.get(each)) for each in names]
        more = [(each.strip(), *("" for _ in names[1:])) for each in table.get(_FURTHER, ())]
        return [each for each in (tuple(values), *more) if each and each[0]]

    def _keep(
        self, target: DestinationSettings, key: str, others: Mapping[str, str], more: Iterable[str]
    ) -> None:
        check_key(target, Key(key, others))
        more = tuple(dict.fromkeys(each for each in more if each != key))
        for each in more:
            check_secret(target, secrets_of(target)[0], each)
        kept = {name: dict(by_address) for name, by_address in self._load().items()}
        table: _Table = {secrets_of(target)[0].name: str(key), **others, **({_FURTHER: more} if more else {})}
        kept.setdefault(target.name, {})[origin(target.url)] = table
        if origin(target.url) == _vendor(target.type):
            kept[target.name].pop("", None)  # it was for this address
        self._write(kept)

    def _of_environment(self, variables: tuple[str | None, ...]) -> _Values:
        return tuple(self._environ.get(each or "", "").strip() for each in variables)

    def _vendors(self, target: DestinationSettings) -> _Values:
        return self._of_environment(_vendors_variables(target)) if _is_open(target) else ()

    def __repr__(self) -> str:
        return f"<Credentials of {self._path}>"

    def _load(self) -> dict[str, dict[str, _Table]]:
        try:
            content, found = read_trusted(self._path, follow=False)
        except FileNotFoundError:
            self._seen, self._stored = None, {}
            return {}
        except OSError as error:
            raise CredentialsError(
                f"cannot read {self._path}: {error.strerror}", hint="hubqueue check finds out why"
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
            hint = f"remove it and store the keys again: rm {self._path}; hubqueue login DESTINATION"
            raise CredentialsError(f"{self._path} is not valid TOML", hint=hint) from None
        self._stored = {name: _by_address(table) for name, table in tables.items() if isinstance(table, dict)}
        self._seen = version
        return self._stored

    def _write(self, stored: Mapping[str, Mapping[str, _Table]]) -> None:
        lines = ["# Keys of hubqueue. Written by `hubqueue login`; keep it private.\n"]
        for name, by_address in sorted(stored.items()):
            for address, table in sorted(by_address.items()):
                path = f"{_quoted(name)}.{json.dumps(address)}" if address else _quoted(name)
                lines.append(f"\n[{path}]\n")
                # A list holds keys that came within the identifier of a model.
                lines += [f"{_quoted(each)} = {json.dumps(value)}\n" for each, value in table.items()]
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
                f"cannot write {self._path}: {error.strerror}", hint="hubqueue check finds out why"
            ) from error


def own_variables(target: DestinationSettings) -> tuple[str, ...]:
    """The variables with all secrets of a destination; that of the first one does not depend on its name."""
    further = (own_variable(target.name, each.name) for each in secrets_of(target)[1:])
    return (own_variable(target.name), *further) if secrets_of(target) else ()


def secret_variables(destinations: Iterable[DestinationSettings]) -> frozenset[str]:
    """The variables with all secrets of all these destinations."""
    return frozenset(name for each in destinations for name in own_variables(each))


def usual_variable(type: str) -> str | None:
    """The variable that the vendor's own clients read a key from."""
    return next(iter(usual_variables(type)), None)


def usual_variables(type: str) -> tuple[str | None, ...]:
    """The variables that the vendor's own clients read all secrets from."""
    return tuple(each.variable for each in declaration(type).secrets)


def _vendors_variables(target: DestinationSettings) -> tuple[str | None, ...]:
    return tuple(each.variable for each in secrets_of(target))


def check_key(target: DestinationSettings, key: str) -> None:
    """Refuse an invalid key of a destination, or one without all secrets. Raises `CredentialsError`."""
    others = key.others if isinstance(key, Key) else {}
    first, *further = secrets_of(target)
    check_secret(target, first, str(key))
    for each in further:
        check_secret(target, each, others.get(each.name, ""))


def check_secret(target: DestinationSettings, secret: Secret, value: str) -> None:
    """Refuse an invalid value of a secret. Raises `CredentialsError`."""
    is_key = secret.name == "key"
    what, which = ("a key for", "a key") if is_key else (f"the {secret.name} for", f"such a {secret.name}")
    if not _KEY.fullmatch(value):
        hint = f"{'a key' if is_key else 'it'} has no spaces; please copy it again"
        raise CredentialsError(f"that is not {what} {target.name}", hint=hint)
    if len(value) < LEAST_KEY:
        hint = "a shorter one could not be masked without masking ordinary text; please copy it again"
        raise CredentialsError(f"{which} has at least {LEAST_KEY} characters", hint=hint)


def secrets_of(target: DestinationSettings) -> tuple[Secret, ...]:
    """The secrets that a destination needs with its settings."""
    declared = declaration(target.type).secrets
    return tuple(each for at, each in enumerate(declared) if at == 0 or each.needed(target))


def _is_whole(values: _Values) -> bool:
    """Whether a source has all secrets."""
    return bool(values) and all(_is_usable(at, each) for at, each in enumerate(values))


def _is_usable(at: int, value: str) -> bool:
    """Whether a secret exists and can be masked. The transport reports what is wrong with the first one."""
    return bool(value) and (at == 0 or (len(value) >= LEAST_KEY and _KEY.fullmatch(value) is not None))


def _parted(names: Iterable[str | None], values: _Values) -> tuple[str, str]:
    """The names of the usable secrets, and of the missing ones."""
    there: list[str] = []
    missing: list[str] = []
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        (there if _is_usable(at, value) else missing).append(name or "the rest")
    return " and ".join(there) or "a part", " and ".join(missing)


def _by_address(table: Mapping[str, object]) -> dict[str, _Table]:
    """What is stored for a destination, by address; an older hubqueue stored no address ("")."""
    tables = {"": table} | {address: each for address, each in table.items() if isinstance(each, dict)}
    found: dict[str, _Table] = {}
    for address, each in tables.items():
        kept: dict[str, str | tuple[str, ...]] = {
            name: value for name, value in each.items() if isinstance(value, str)
        }
        further = each.get(_FURTHER)
        if isinstance(further, list) and (texts := tuple(one for one in further if isinstance(one, str))):
            kept[_FURTHER] = texts
        if kept:
            found[address] = kept
    return found


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _quoted(name: str) -> str:
    return name if _NAME.fullmatch(name) else json.dumps(name)


def _vendor(type: str) -> str:
    return origin(vendors_url(type))


def _borrowed(target: DestinationSettings, environ: Mapping[str, str]) -> _Values:
    """What the vendor's own client keeps, as far as it may be used for this address."""
    is_open = _is_open(target)
    return tuple(each.lent(environ) if is_open or each.anywhere else "" for each in secrets_of(target))


def _is_open(target: DestinationSettings) -> bool:
    """Whether the vendor's own variables and settings may be used for this address."""
    return target.url_named or origin(target.url) == _vendor(target.type)
