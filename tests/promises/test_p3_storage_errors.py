"""P3 and P6 under storage errors: no error loses an entry, and after a commit whose confirmation was lost nothing is
enqueued twice or deleted."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from postgres import Postgres
from sqlalchemy.engine import make_url
from stage import save_snapshot, totals

import hubqueue as package
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.memory.backlog import Backlog
from hubqueue.producer.run import Run

Statement = Callable[[str], None]


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))


def epochs(outbox: Outbox) -> list[str]:
    """The epochs in the outbox, each as often as it was enqueued."""
    return sorted(row["key"] for row in outbox.stats.entries(kind="metrics", limit=1000))


def log(run: Run, *numbers: int) -> list[bool]:
    """Log epochs; return for each whether it was saved at once."""
    return [run.log_metrics({"loss": 1.0}, epoch=number) is not None for number in numbers]


# SQLite.


def write(outbox: Outbox, statement: str) -> None:
    """Execute a statement on the connection that the run writes with."""
    with outbox.database.write() as tx:
        tx.exec_driver_sql(statement)


def test_what_a_trigger_refuses_is_kept_and_saved_later() -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    assert run.outbox is not None
    write(
        run.outbox,
        "CREATE TRIGGER refusing BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'not today'); END",
    )
    assert log(run, 0, 1, 2) == [False, False, False]

    write(run.outbox, "DROP TRIGGER refusing")

    assert log(run, 3) == [True]
    assert epochs(run.outbox) == ["0", "1", "2", "3"]
    assert run.finish(timeout=0).unsaved == 0


def test_what_a_read_only_connection_refuses_is_kept_and_saved_later() -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    assert run.outbox is not None
    run.outbox.database._held(reading=False).connection.driver_connection.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]

    assert log(run, 0) == [False]

    assert log(run, 1) == [True]
    assert epochs(run.outbox) == ["0", "1"]


def test_a_full_disk_loses_no_epoch_that_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        monkeypatch.setenv("HUBQUEUE_HOME", str(folder / "home"))
        run = package.start_run("yolov8n.pt", worker="none")
        with (folder / "rest").open("wb", buffering=0) as rest:
            try:
                while True:
                    rest.write(b"x" * 4096)
            except OSError:
                pass
        saved = log(run, *range(100))
        assert not all(saved)
        (folder / "rest").unlink()

        assert log(run, 100) == [True]

        assert run.outbox is not None
        assert sorted(map(int, epochs(run.outbox))) == list(range(101))
        assert run.finish(timeout=0).unsaved == 0
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_refused_draft_blocks_no_other_and_is_kept() -> None:
    saved: list[str] = []

    def enqueue(draft: Draft, _unsure: bool) -> int:
        if draft.key == "1" and "2" not in saved:
            raise ValueError("an unexpected error")
        saved.append(draft.key)
        return len(saved)

    backlog = Backlog(lambda *_: None)
    backlog.put(metrics_draft("{}", 1))
    with pytest.raises(ValueError, match="unexpected"):
        backlog.save(enqueue)
    backlog.put(metrics_draft("{}", 2))

    assert backlog.save(enqueue) == 1
    assert len(backlog) == 1
    backlog.save(enqueue)
    assert saved == ["2", "1"]


# PostgreSQL.


@pytest.fixture
def url(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    found = postgres.new_database()
    monkeypatch.setenv("HUBQUEUE_OUTBOX__URL", found)
    return found


def operator(url: str, *statements: str) -> None:
    """Execute statements as the administrator of the server, from another database."""
    parts = make_url(url)
    with psycopg.connect(
        host=str(parts.query["host"]), user=parts.username, dbname="postgres", autocommit=True
    ) as connection:
        for each in statements:
            connection.execute(each.format(name=parts.database))  # type: ignore[arg-type]


_END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"


@pytest.mark.parametrize(
    "setting",
    ["default_transaction_read_only = on", "statement_timeout = '1ms'", "transaction_timeout = '1ms'"],
)
def test_a_server_that_refuses_for_a_while_loses_no_epoch(url: str, setting: str) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    try:
        operator(url, "ALTER DATABASE {name} SET " + setting, _END_CONNECTIONS)
    except psycopg.errors.UndefinedObject:
        pytest.skip("this server does not know the setting")
    saved = log(run, *range(20))
    if "read_only" in setting:
        assert not any(saved)
    operator(url, "ALTER DATABASE {name} RESET ALL", _END_CONNECTIONS)

    assert log(run, 20, 21)[1]

    assert run.outbox is not None
    assert sorted(map(int, epochs(run.outbox))) == list(range(22))
    assert totals(run.outbox).get("superseded", 0) == 0
    assert run.finish(timeout=0).unsaved == 0


def test_connections_ended_by_the_server_lose_no_epoch(url: str) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    done = threading.Event()

    def end() -> None:
        while not done.wait(0.01):
            operator(url, _END_CONNECTIONS)

    thread = threading.Thread(target=end)
    thread.start()
    log(run, *range(100))
    done.set()
    thread.join()

    assert log(run, 100, 101)[1]

    assert run.outbox is not None
    assert sorted(map(int, epochs(run.outbox))) == list(range(102))
    assert totals(run.outbox).get("superseded", 0) == 0


class Cutting:
    """A proxy in front of the server. It can cut a connection after it has forwarded a COMMIT: the server commits, but
    the client gets no confirmation."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.spared = 0  # the number of COMMITs to let through before the cut
        self.armed = threading.Event()
        self.cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._server))
            deaf = threading.Event()
            threading.Thread(target=self._forth, args=(client, server, deaf), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client, deaf), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        try:
            while data := client.recv(65536):
                if self.armed.is_set() and b"COMMIT\x00" in data:
                    if self.spared:
                        self.spared -= 1
                    else:
                        self.armed.clear()
                        deaf.set()
                server.sendall(data)
        except OSError:
            pass
        _shut(server)

    def _back(self, server: socket.socket, client: socket.socket, deaf: threading.Event) -> None:
        try:
            while data := server.recv(65536):
                if deaf.is_set():
                    self.cut.set()
                    break
                client.sendall(data)
        except OSError:
            pass
        _shut(client)


def _shut(each: socket.socket) -> None:
    try:
        each.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@contextmanager
def cutting(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutting]:
    parts = make_url(url)
    proxy = Cutting(Path(str(parts.query["host"])) / ".s.PGSQL.5432")
    through = f"postgresql+psycopg://{parts.username}@127.0.0.1:{proxy.port}/{parts.database}?sslmode=disable"
    monkeypatch.setenv("HUBQUEUE_OUTBOX__URL", through + "&gssencmode=disable")
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.mark.parametrize("spared", [0, 1, 2], ids=["address", "run", "registration"])
def test_a_start_whose_confirmation_was_lost_is_one_run(
    url: str, monkeypatch: pytest.MonkeyPatch, spared: int
) -> None:
    open_outbox(environ={**os.environ, "HUBQUEUE_OUTBOX__URL": url}).close()
    with cutting(url, monkeypatch) as proxy:
        proxy.spared = spared
        proxy.armed.set()
        run = package.start_run("yolov8n.pt", destination="hub", worker="none")
        assert proxy.cut.wait(30)

        assert run.finish(timeout=0).entries == 1

        assert run.outbox is not None
        assert [row["id"] for row in run.outbox.stats.runs(finished=None)] == [run.id]
        assert len(run.outbox.addresses.all()) == 1
        assert totals(run.outbox) == {"enqueued": 1, "pending": 1}


def test_an_epoch_whose_confirmation_was_lost_is_enqueued_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cutting(url, monkeypatch) as proxy:
        run = package.start_run("yolov8n.pt", worker="none")
        for epoch in range(5):
            proxy.armed.set()
            log(run, epoch)
            assert proxy.cut.wait(30)
            proxy.cut.clear()

        assert log(run, 5) == [True]

        assert run.outbox is not None
        assert epochs(run.outbox) == ["0", "1", "2", "3", "4", "5"]
        assert totals(run.outbox) == {"enqueued": 7, "pending": 7}
        assert run.finish(timeout=0).unsaved == 0


def test_a_checkpoint_whose_confirmation_was_lost_keeps_its_body(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    with cutting(url, monkeypatch) as proxy:
        run = package.start_run("yolov8n.pt", worker="none")
        proxy.armed.set()
        run.save_checkpoint(tmp_path / "best.pt", epoch=0, final=True)
        assert proxy.cut.wait(30)
        log(run, 0)

        assert run.outbox is not None
        (row,) = run.outbox.stats.entries(kind="ckpt")
        assert (run.outbox.spool.path / str(row["snapshot"])).read_bytes() == b"weights"
        assert run.finish(timeout=0).unsaved == 0


def test_a_shell_command_whose_confirmation_was_lost_keeps_the_body_too(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    (tmp_path / "best.pt").write_bytes(b"weights")
    with cutting(url, monkeypatch) as proxy:
        run = package.start_run("yolov8n.pt", worker="none")
        with open_outbox() as outbox:
            outbox.stats.totals()
            proxy.armed.set()

            entry = save_snapshot(outbox, run.id or "", Checkpoint(tmp_path / "best.pt", 0))

            (row,) = outbox.stats.entries(kind="ckpt")
            assert row["id"] == entry
            assert (outbox.spool.path / str(row["snapshot"])).exists()


def test_a_checkpoint_that_a_server_refuses_for_a_while_is_enqueued_later(url: str, tmp_path: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    operator(url, "ALTER DATABASE {name} SET default_transaction_read_only = on", _END_CONNECTIONS)
    for epoch in range(3):
        (tmp_path / "last.pt").write_bytes(b"weights of %d" % epoch)
        assert run.save_checkpoint(tmp_path / "last.pt", epoch=epoch) is None
    (tmp_path / "last.pt").unlink()
    operator(url, "ALTER DATABASE {name} RESET ALL", _END_CONNECTIONS)

    log(run, 0, 1)

    assert run.outbox is not None
    (row,) = run.outbox.stats.entries(kind="ckpt")
    (kept,) = run.outbox.spool.path.glob("[!.]*")
    assert kept.name == row["snapshot"]
    assert kept.read_bytes() == b"weights of 2"
    assert run.finish(timeout=0).unsaved == 0


def test_a_lost_confirmation_differs_from_a_refusal(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with cutting(url, monkeypatch) as proxy, open_outbox() as outbox:
        proxy.armed.set()
        with pytest.raises(OutboxUnavailable) as lost, outbox.database.write() as tx:
            tx.exec_driver_sql("DELETE FROM workers")
        with pytest.raises(OutboxUnavailable) as refused, outbox.database.write() as tx:
            tx.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

        assert (lost.value.unsure, refused.value.unsure) == (True, False)
