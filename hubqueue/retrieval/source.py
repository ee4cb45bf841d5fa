"""A destination that is read: the doorway to its reader, which may be another package's code.

What a reader raises becomes one of hubqueue's errors, each with the next step. Uses the settings and the keys of a home,
and creates neither a home nor an outbox.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubqueue.config.config import Config
from hubqueue.config.credentials import Credentials
from hubqueue.config.declaration import Reader
from hubqueue.config.home import Home
from hubqueue.config.known_keys import learn_keys
from hubqueue.config.registry import absent, declaration, usable
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import (
    TRY_AGAIN,
    CredentialsError,
    DestinationUnavailable,
    HubqueueError,
    InvalidArgument,
    NotThere,
    NotWhole,
)
from hubqueue.domain.redact import clean
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile, StoredRun

if TYPE_CHECKING:
    from hubqueue.outbox.outbox import Outbox

AnyPath = str | os.PathLike[str]
_ASK_THE_AUTHOR = "report it to the author of this type of destination"


class Source:
    """One destination and its reader. Use it as a context manager: `opened`."""

    def __init__(self, target: DestinationSettings, reader: Reader, *, keyless: bool = False) -> None:
        self.target = target
        self._reader, self._keyless = reader, keyless

    def runs(self) -> list[StoredRun]:
        """All runs, the newest last. Raises `DestinationUnavailable`."""
        with self._asked():
            return list(self._reader.runs())

    def checkpoints(self, run: str) -> tuple[StoredCheckpoint, ...]:
        """The whole checkpoints of a run, in the order of their epochs and steps.

        Raises `NotThere` for an unknown run, and `DestinationUnavailable`.
        """
        with self._asked():
            return tuple(map(_typed, self._reader.checkpoints(run)))

    def blocks(self, checkpoint: StoredCheckpoint, file: StoredFile, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `start`: exactly those up to its size.

        Raises `NotWhole` for fewer or more, `NotThere`, and `DestinationUnavailable`.
        """
        done = start
        with ExitStack() as at_end:
            with self._asked():
                blocks = iter(self._reader.blocks(checkpoint, file, start=start))
                if hasattr(blocks, "close"):
                    at_end.callback(blocks.close)  # the connection of a generator
            while True:
                with self._asked():
                    block = next(blocks, None)
                if block is None:
                    break
                done += len(block)
                if done > file.size:
                    raise self.not_whole(checkpoint, file.path, f"it has more than {file.size} bytes")
                yield block
        if done < file.size:
            raise self.not_whole(checkpoint, file.path, f"it ends after {done} of {file.size} bytes")

    def stated(self, checkpoint: StoredCheckpoint, file: StoredFile) -> StoredFile | None:
        """What the destination states about a file now; None if it is gone. Raises `DestinationUnavailable`."""
        try:
            with self._asked():
                return self._reader.hashed(checkpoint, file)
        except NotThere:
            return None

    def close(self) -> None:
        """Close connections and files."""
        with suppress(Exception):  # what was read is complete
            self._reader.close()

    def not_whole(self, checkpoint: StoredCheckpoint, path: str, why: str) -> NotWhole:
        """The error of a checkpoint that is there, but not as it was saved. `path` is empty for the whole of it."""
        which = (
            f"{clean(path, limit=80)!r} of {clean(checkpoint.name, limit=80)}" if path else checkpoint.name
        )
        hint = "choose another checkpoint, or save it again where it was saved"
        return NotWhole(f"{which} at {self.target.name} is not whole: {why}", hint=hint)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Ask the reader, and raise what it raises as one of hubqueue's errors."""
        name = self.target.name
        try:
            yield
        except DestinationUnavailable as error:
            if error.hint and not self._keyless:
                raise
            hint = f"hubqueue login {name}" if self._keyless else TRY_AGAIN
            raise DestinationUnavailable(str(error), hint=hint) from error
        except NotThere as error:
            if error.hint:
                raise
            raise NotThere(str(error), hint=f"hubqueue pull {name} --list shows its runs") from error
        except HubqueueError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            what = clean(f"{type(error).__name__}: {error}", limit=200)
            hint = TRY_AGAIN if isinstance(error, OSError) else _ASK_THE_AUTHOR
            raise DestinationUnavailable(f"{name} cannot be read: {what}", hint=hint) from error


@contextmanager
def opened(destination: str, home: AnyPath | None, config: AnyPath | None) -> Iterator[Source]:
    """The destination of this name, ready to be read.

    Raises `ConfigError` for one that the configuration does not have or whose type is not usable here, and
    `InvalidArgument` for one that cannot be read.
    """
    located = Home.locate(home, os.environ)
    settings = located.load_config(None if config is None else Path(config), os.environ)
    target = settings.destination(destination)
    if (missing := absent(target.type)) is not None:
        raise missing.error
    declared = declaration(target.type)
    if declared.read is None:
        raise InvalidArgument(
            f"destination {target.name} (type {target.type}) cannot be read", hint=_readable(settings)
        )
    learn_keys(located.credentials, os.environ, settings.destinations.values())
    keys = partial(Credentials(located.credentials, os.environ).keys, target)
    try:
        keyless = bool(declared.secrets) and not keys()
    except CredentialsError as error:
        raise DestinationUnavailable(f"{target.name}: {error}", hint=error.hint) from error
    source = Source(target, declared.read(target, keys), keyless=keyless)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def outbox_of(home: AnyPath | None, config: AnyPath | None) -> Iterator[Outbox | None]:
    """The outbox of this home, opened to read; None if there is none: it is not created."""
    located = Home.locate(home, os.environ)
    settings = located.load_config(None if config is None else Path(config), os.environ)
    if settings.outbox.url is None and not located.outbox.exists():
        yield None
        return
    from hubqueue.outbox.outbox import open_to_read  # it takes most of the time of a short command

    with open_to_read(home, config) as outbox:
        yield outbox


def _typed(checkpoint: StoredCheckpoint) -> StoredCheckpoint:
    """Sizes that can be counted: a reader may pass on the values of a manifest as they are."""
    files = tuple(
        each if type(each.size) is int else replace(each, size=-1)  # which no check accepts
        for each in checkpoint.files
    )
    return replace(checkpoint, files=files)


def _readable(settings: Config) -> str:
    """Which destinations can be read instead, for a hint."""
    types = {each for each in usable() if declaration(each).read is not None}
    names = [name for name, each in settings.destinations.items() if each.type in types]
    if names:
        return f"these can: {', '.join(names)}"
    return f"destinations of these types can: {', '.join(sorted(types))}" if types else "no type here can be"
