"""What all tests share: homes, clocks, outboxes on every database, and a hub over real sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import hypothesis.core
import pytest
import statements
import template
from postgres import Postgres, find_postgres

from hubqueue.domain import redact
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock

statements.share()

DATABASES = ("pysqlite3", "sqlite3", "postgresql")
_OURS = ("HUBQUEUE_", "HUB_API", "ULTRALYTICS_", "AWS_", "MLFLOW_")

OpenOutbox = Callable[..., Outbox]

# No deadline: a busy machine is not a failure. No database of examples: only the seed decides what is tried.
hypothesis.settings.register_profile(
    "quick",
    max_examples=40,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("quick"), max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """The seed that pytest prints decides the order of the tests and the examples of the properties.

    Ctrl-C is not ignored: what a shell starts in the background ignores it, and so would every process of a test.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    seed = config.getoption("randomly_seed", None)
    if isinstance(seed, int) and hypothesis.core.global_force_seed is None:
        hypothesis.core.global_force_seed = seed


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's settings must not affect a test, and tests must not touch the developer's home."""
    for name in list(os.environ):
        if name.startswith(_OURS):
            monkeypatch.delenv(name)
    # The keys that this process knows are masked everywhere: those of another test must not change what this one sees.
    monkeypatch.setattr(redact, "_KNOWN", {})
    monkeypatch.setenv("HUBQUEUE_HOME", "/nonexistent/home-of-no-test")
    monkeypatch.setenv("YOLO_CONFIG_DIR", "/nonexistent/settings-of-no-test")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/configuration-of-no-test")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials-of-no-test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def new_home(home: Path) -> Path:
    """A home that does not exist, for tests of its creation. It overrides `migrated_home`; `outbox` creates it."""
    return home


@pytest.fixture
def migrated(request: pytest.FixtureRequest) -> bool:
    """Whether a test may start with a copy of a migrated outbox."""
    return "new_home" not in request.fixturenames


@pytest.fixture
def migrated_home(home: Path, migrated: bool) -> Path:
    """The home, with an outbox that was never opened."""
    if migrated and not home.exists():
        template.lay(home)
    return home


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "hub") as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server on this machine")
    with Postgres(binaries) as server:
        yield server


@pytest.fixture(params=DATABASES)
def database_environ(request: pytest.FixtureRequest, home: Path, migrated: bool) -> dict[str, str]:
    """The environment that selects each database in turn."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return {"HUBQUEUE_OUTBOX__URL": server.new_database(migrated=migrated)}
    if request.param == "pysqlite3":
        pytest.importorskip("pysqlite3", reason="there is no pysqlite3 wheel for this platform")
    if migrated and not home.exists():
        template.lay(home, request.param)
    return {"HUBQUEUE_OUTBOX__DRIVER": request.param}


@pytest.fixture
def any_outbox(home: Path, clock: FakeClock, database_environ: dict[str, str]) -> Iterator[Outbox]:
    """An outbox, on every database in turn, with a clock that the test moves."""
    with open_outbox(home, environ=database_environ, clock=clock) as outbox:
        outbox.note_destinations()
        yield outbox


@pytest.fixture
def outbox(migrated_home: Path, clock: FakeClock) -> Iterator[Outbox]:
    """An outbox on the default database, with a clock that the test moves."""
    with open_outbox(migrated_home, environ={}, clock=clock) as opened:
        opened.note_destinations()
        yield opened
