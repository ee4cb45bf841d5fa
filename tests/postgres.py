"""A PostgreSQL server of the tests' own: on a socket in a temporary folder, ended with the session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import template
from sqlalchemy.engine import make_url

from hubqueue.outbox.outbox import open_outbox


def find_postgres() -> Path | None:
    """The folder of the server's programs, None where there are none."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


class Postgres:
    """A running server. `new_database` gives the URL of an empty database."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # A short path: the name of a socket has room for about 100 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="hq-pg-", dir="/tmp"))
        # The server refuses to run as root.
        self._user = "postgres" if hasattr(os, "geteuid") and os.geteuid() == 0 else None
        self._count = 0

    def __enter__(self) -> Self:
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._run(
            "initdb",
            "--pgdata",
            str(self._folder / "data"),
            "--username",
            "tests",
            "--auth",
            "trust",
            "--no-sync",
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        log = str(self._folder / "log")
        self._run(
            "pg_ctl",
            "--pgdata",
            str(self._folder / "data"),
            "--options",
            options,
            "--log",
            log,
            "--wait",
            "start",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "--pgdata", str(self._folder / "data"), "--mode", "immediate", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self, *, migrated: bool = False) -> str:
        """Its URL. `migrated` as `template` has them: an outbox without a name."""
        self._count += 1
        name = f"test{self._count}"
        self._create(name, f"TEMPLATE {self._migrated}" if migrated else "")
        return self._url(name)

    @cached_property
    def _migrated(self) -> str:
        self._create("migrated")
        environ = {"HUBQUEUE_OUTBOX__URL": self._url("migrated")}
        with tempfile.TemporaryDirectory() as home, open_outbox(f"{home}/home", environ=environ) as outbox:
            template.forget(outbox)
        return "migrated"

    def _create(self, name: str, how: str = "") -> None:
        with psycopg.connect(
            host=str(self._folder), user="tests", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name} {how}")

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://tests@/{name}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        # Not captured through pipes: the server would inherit them and keep the call waiting.
        with (self._folder.parent / f"{self._folder.name}.out").open("w+") as output:
            Path(output.name).unlink()
            ended = subprocess.run(
                command, stdout=output, stderr=output, user=self._user, cwd="/", check=False
            )
            output.seek(0)
            assert ended.returncode == 0, output.read()


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    parts = make_url(url)
    return psycopg.connect(host=str(parts.query["host"]), user=parts.username, dbname=parts.database)


def wait_for_waiting(url: str, count: int) -> None:
    """Until so many backends of this database wait for a lock of another one."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connect(url) as connection:
        connection.autocommit = True
        until = time.monotonic() + 60
        while connection.execute(query).fetchone() != (count,):
            assert time.monotonic() < until, "nobody waits"
            threading.Event().wait(0.02)
