"""The context of the benchmarks: one folder on a real file system, and facts about the machine."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hubqueue.config.home import Home
from hubqueue.outbox.database.sqlite import journal_for, load_driver

if TYPE_CHECKING:
    from benchmarks.crowd import Crowd
    from benchmarks.receiver import Hub

ROOT = Path(__file__).resolve().parent.parent
_NOT_REAL = ("tmpfs", "ramfs", "overlay")


class Context:
    """The folder of one run of the benchmarks, deleted at its end. `quick` requests fewer and smaller rounds."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._stack = ExitStack()
        parent = os.environ.get("TMPDIR") or str(ROOT.parent)
        made = tempfile.TemporaryDirectory(prefix="hubqueue-bench-", dir=parent, ignore_cleanup_errors=True)
        self.folder = Path(self._stack.enter_context(made))

    def new(self, name: str) -> Path:
        """A fresh folder of that name."""
        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        made.chmod(0o700)
        return made

    @cached_property
    def hub(self) -> Hub:
        """The receiving hub, a separate process."""
        from benchmarks.receiver import Hub

        return self._stack.enter_context(Hub())

    @cached_property
    def crowd(self) -> Crowd:
        """The outbox with a long history, made once."""
        from benchmarks.crowd import Crowd

        return Crowd.make(self.new("crowd"), quick=self.quick)

    def environ(self, home: Path, **settings: object) -> dict[str, str]:
        """The environment of a process that uses a home: this hub, no limits, and `settings` (SECTION__KEY)."""
        own = {
            "HUBQUEUE_HOME": str(home),
            "ULTRALYTICS_HUB_API": self.hub.url,
            "HUB_API_KEY": "key-of-the-benchmarks",
            "HUBQUEUE_RATE_LIMITS__METRICS": "0",
            "HUBQUEUE_RATE_LIMITS__CKPT": "0",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        return {**os.environ, **own, **{f"HUBQUEUE_{key}": str(value) for key, value in settings.items()}}

    def __enter__(self) -> Self:
        kind = Home(self.folder).file_system()
        if kind in _NOT_REAL:
            raise SystemExit(f"error: {self.folder} is on {kind}\nhint: point TMPDIR at a real file system")
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()


def journal() -> tuple[str, str]:
    """The journal mode and the synchronous level of an outbox on this machine. The floor uses the same."""
    return journal_for(tuple(load_driver("auto").sqlite_version_info), network=False)


def machine(context: Context) -> Mapping[str, str]:
    """The facts about the machine that every figure depends on."""
    import sqlite3

    mode, level = journal()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": Home(context.folder).file_system(),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "SQLite": f"{load_driver('auto').sqlite_version} ({mode.upper()}, {level}) for hubqueue and the floor, {sqlite3.sqlite_version} for the peers",
        "hubqueue": version("hubqueue"),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def version(package: str) -> str:
    """The installed version of a package, "" if it is not installed."""
    try:
        return metadata.version(package) if package else ""
    except metadata.PackageNotFoundError:
        return ""


def python(*arguments: str) -> list[str]:
    """The command line of this Python."""
    return [sys.executable, *arguments]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
