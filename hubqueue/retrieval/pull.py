"""`hubqueue.pull`: a checkpoint back from a destination, whole and verified, for example to resume on another machine."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hubqueue.config.home import literal_path
from hubqueue.domain.errors import InvalidArgument
from hubqueue.domain.redact import clean
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredRun
from hubqueue.retrieval.choosing import LATEST, choose, parse
from hubqueue.retrieval.download import Download, Progress, Pulled
from hubqueue.retrieval.naming import find
from hubqueue.retrieval.paths import name_problem
from hubqueue.retrieval.source import AnyPath, opened, outbox_of


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A pulled checkpoint: the run's name at the destination, the checkpoint, and where it is now."""

    run: str
    checkpoint: StoredCheckpoint
    pulled: Pulled


def pull(
    destination: str,
    *,
    run: str,
    which: str = LATEST,
    to: AnyPath,
    home: AnyPath | None = None,
    config: AnyPath | None = None,
    force: bool = False,
) -> Path:
    """Download a checkpoint into the folder `to`, and return its path there: `to/epoch-0012.pt`, or `to/epoch-0012/`.

    `run` is the run's name at the destination, or its id or name in the outbox of `home`. `which` is latest, best, final,
    epoch:N or step:N. Every file is compared with its size and SHA-256, and the checkpoint gets its path only when all of
    it is there. What arrived before an interruption is used by the next call. A checkpoint that is already there whole is
    not downloaded again; anything else at its path is replaced only with `force`.

    Raises `NotThere` for a run or a checkpoint that the destination does not have, `NotWhole` for one that is not what was
    saved, `DestinationUnavailable`, `NotWritten` if it cannot be stored here, `ConfigError`, `InvalidArgument`.
    """
    return retrieve(
        destination, run=run, which=which, to=to, home=home, config=config, force=force
    ).pulled.path


def retrieve(
    destination: str,
    *,
    run: str,
    which: str = LATEST,
    to: AnyPath | None = None,
    home: AnyPath | None = None,
    config: AnyPath | None = None,
    force: bool = False,
    progress: Progress = lambda _here, _before, _total: None,
) -> Retrieved:
    """`pull` with all of its result. Without `to` the folder is the run's name, in the current folder."""
    wanted = parse(which)
    folder = None if to is None else literal_path(to, "--to")
    with ExitStack() as at_end:
        source = at_end.enter_context(opened(destination, home, config))
        # Opened only if needed: on another machine there is none, and a damaged one must not prevent a pull.
        name, checkpoints = find(source, run, lambda: at_end.enter_context(outbox_of(home, config)))
        checkpoint = choose(checkpoints, wanted, run=clean(name, limit=80))
        if folder is None:
            folder = _folder_of(name)
        pulled = Download(source, checkpoint, folder, replace=force, progress=progress).run()
    return Retrieved(name, checkpoint, pulled)


def runs_at(
    destination: str, *, home: AnyPath | None = None, config: AnyPath | None = None
) -> list[StoredRun]:
    """The runs that a destination has, the newest last. Raises as `pull`."""
    with opened(destination, home, config) as source:
        return source.runs()


def checkpoints_of(
    destination: str, *, run: str, home: AnyPath | None = None, config: AnyPath | None = None
) -> tuple[str, tuple[StoredCheckpoint, ...]]:
    """The name of a run at a destination, and its whole checkpoints in their order. Raises as `pull`."""
    with ExitStack() as at_end:
        source = at_end.enter_context(opened(destination, home, config))
        return find(source, run, lambda: at_end.enter_context(outbox_of(home, config)))


def _folder_of(run: str) -> Path:
    if (problem := name_problem(run, windows=os.name == "nt")) is not None:
        raise InvalidArgument(f"the name of the run {problem}", hint="name a folder: --to")
    return Path.cwd() / run
