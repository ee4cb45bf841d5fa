"""A stranger's package that is broken, upgraded or careless: what it owes is kept, and goes nowhere else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from plugin_stage import (
    ID,
    SECRET,
    Collector,
    break_package,
    configure,
    forget_types,
    in_this_process,
    install,
    plugin_environ,
)
from stage import hubqueue, totals

import hubqueue as package
from hubqueue.config import registry
from hubqueue.config.credentials import Credentials
from hubqueue.config.declaration import Key
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.database.sqlite import set_aside
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.readdressing import moves
from hubqueue.worker.worker import Worker

LANES = "lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.COMPLETION)"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """The package in this process."""
    with in_this_process(install(tmp_path / "site")) as present:
        yield present


@pytest.fixture
def module(installed: Path) -> Path:
    return installed / "hubqueue_collector" / "__init__.py"


def _replace(module: Path, was: str, now: str) -> None:
    """The package after an upgrade."""
    assert was in module.read_text()
    module.write_text(module.read_text().replace(was, now))
    for compiled in module.parent.rglob("*.pyc"):
        compiled.unlink()
    forget_types()


def _log_in(home: Path) -> None:
    with open_outbox(home) as outbox:
        outbox.credentials.store(outbox.config.destination("lab"), Key(ID, {"secret": SECRET}))


def _abandon(home: Path) -> str:
    """A run whose process is gone: nobody holds its lock."""
    run = package.start_run("resnet50.pt", destination="lab", home=home, worker="none")
    run._saving.opening.ended()
    assert run.id is not None
    return run.id


def _work(outbox: Outbox) -> None:
    worker = Worker(outbox, emit=lambda _fact: None)
    assert worker.start()
    while worker.step():
        assert worker.wait_free(60)
    worker.stop(timedelta(0))


def test_a_run_is_not_closed_without_its_end_while_its_package_is_broken(
    home: Path, module: Path, collector: Collector
) -> None:
    configure(home, collector.url)
    _log_in(home)
    run = _abandon(home)
    sound = module.read_text()
    break_package(module.parent.parent)
    forget_types()

    with open_outbox(home) as outbox:
        Janitor(outbox, lambda _fact: None).scan()
        assert totals(outbox) == {"enqueued": 1, "pending": 1}
    _replace(module, module.read_text(), sound)
    with open_outbox(home) as outbox:
        Janitor(outbox, lambda _fact: None).scan()
        assert outbox.stats.run(run)["state"] == RunState.INTERRUPTED
        _work(outbox)

    assert collector.taken["end"] == {"state": "interrupted"}


def test_a_package_that_wants_the_end_since_its_upgrade_gets_it(
    home: Path, module: Path, collector: Collector
) -> None:
    _replace(module, LANES, "lanes=(Kind.REGISTRATION, Kind.METRICS)")
    _replace(module, "    completion=completion,\n", "")
    configure(home, collector.url)
    _log_in(home)
    runs = [_abandon(home), _abandon(home)]
    _replace(module, "lanes=(Kind.REGISTRATION, Kind.METRICS)", f"completion=completion, {LANES}")

    with open_outbox(home) as outbox:
        Janitor(outbox, lambda _fact: None).scan()
        _work(outbox)

        assert {outbox.stats.run(each)["state"] for each in runs} == {RunState.INTERRUPTED}
    assert [path for path, _, _ in collector.requests if path.endswith("/end")] != []


def test_a_salvaged_run_of_a_broken_package_gets_the_lanes_that_it_had(
    home: Path, module: Path, collector: Collector
) -> None:
    configure(home, collector.url)
    _log_in(home)
    run = _abandon(home)
    break_package(module.parent.parent)
    forget_types()
    with closing(sqlite3.connect(home / "outbox.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    set_aside(home / "outbox.db")

    with open_outbox(home) as outbox:
        Janitor(outbox, lambda _fact: None).salvage()
        (saved,) = outbox.stats.runs(run_id=run)

    assert {lane["kind"] for lane in saved["lanes"]} == {"registration", "metrics", "ckpt", "completion"}


@pytest.mark.parametrize("draft", ["None", "'the end'", "Draft(Kind.COMPLETION, 'end', 0, '\\ud800')"])
def test_an_end_that_cannot_be_saved_stops_no_other_run(
    home: Path, module: Path, collector: Collector, draft: str
) -> None:
    _replace(module, 'Draft(Kind.COMPLETION, "completion", 0, json.dumps({"state": state}))', draft)
    configure(home, collector.url)
    _log_in(home)
    runs = [_abandon(home), _abandon(home)]

    with open_outbox(home) as outbox:
        Janitor(outbox, lambda _fact: None).scan()

        assert {outbox.stats.run(each)["state"] for each in runs} == {RunState.INTERRUPTED}


def test_a_key_of_the_same_id_with_another_secret_is_another_key(
    home: Path, installed: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(home, collector.url)
    _log_in(home)
    monkeypatch.setenv("HUBQUEUE_KEY_LAB", ID)
    monkeypatch.setenv("HUBQUEUE_SECRET_LAB", "secret-of-last-year")

    package.start_run("resnet50.pt", destination="lab", home=home, worker="none")
    with open_outbox(home) as outbox:
        lab = outbox.config.destination("lab")
        assert [each.parts for each in outbox.credentials.keys(lab)] == [
            (ID, "secret-of-last-year"),
            (ID, SECRET),
        ]


def _assert_one_failed_attempt(home: Path, collector: Collector) -> None:
    configure(home, collector.url)
    _log_in(home)
    run = package.start_run("resnet50.pt", destination="lab", home=home, worker="none")

    with open_outbox(home) as outbox:
        _work(outbox)
        (lane,) = [each for each in outbox.stats.runs(run_id=run.id)[0]["lanes"] if each["attempts"]]

    assert (lane["failures"], lane["pending"]) == (1, 1)
    assert lane["last_error"].startswith("internal error")


@pytest.mark.parametrize("outcome", ["None", "'sent'", "Delivered"])
def test_an_attempt_without_an_outcome_is_settled_as_a_failed_one(
    home: Path, installed: Path, collector: Collector, outcome: str
) -> None:
    transport = installed / "hubqueue_collector" / "transport.py"
    _replace(
        transport,
        "def send(self, batch, attempt):",
        f"def send(self, batch, attempt):\n        return {outcome}",
    )

    _assert_one_failed_attempt(home, collector)


def test_a_run_saves_only_what_its_destination_takes(
    home: Path, module: Path, collector: Collector, tmp_path: Path
) -> None:
    _replace(module, LANES, "lanes=(Kind.REGISTRATION, Kind.COMPLETION)")
    configure(home, collector.url)
    _log_in(home)
    (tmp_path / "last.pt").write_bytes(b"weights")
    run = package.start_run("resnet50.pt", destination="lab", home=home, worker="none", strict=True)

    assert run.log_metrics({"loss": 1.0}, epoch=0) is None
    assert run.save_checkpoint(tmp_path / "last.pt", epoch=0) is None
    left = run.finish(timeout=0)

    assert left.unsaved == 0
    assert list((home / "spool").glob("[!.]*")) == []


def test_a_shell_is_refused_what_the_destination_of_a_run_does_not_take(
    home: Path, module: Path, collector: Collector
) -> None:
    _replace(module, LANES, "lanes=(Kind.REGISTRATION, Kind.COMPLETION)")
    configure(home, collector.url)
    run = package.start_run("resnet50.pt", destination="lab", home=home, worker="none")
    environ, of_run = plugin_environ(home, module.parent.parent), ("--run", str(run.id), "--epoch", "0")

    saved = hubqueue(environ, "enqueue", "metrics", *of_run, "loss=1")

    assert (saved.returncode, "destination lab takes no metrics" in saved.stderr) == (2, True), saved.stderr


def test_runs_of_a_broken_package_are_not_readdressed_to_a_key_nobody_knows(
    home: Path, module: Path, collector: Collector
) -> None:
    configure(home, collector.url)
    _log_in(home)
    run = _abandon(home)
    with open_outbox(home) as outbox:
        before = outbox.stats.run(run)["destination"]
    break_package(module.parent.parent)
    forget_types()

    with open_outbox(home) as outbox:
        with pytest.raises(ConfigError, match="hubqueue-collector"):
            list(moves(outbox, [], run_id=run, to=None))

        assert outbox.stats.run(run)["destination"] == before


def test_a_run_of_a_broken_package_goes_to_no_other_destination(
    home: Path, module: Path, collector: Collector
) -> None:
    configure(home, collector.url, "[destinations.hub]", 'url = "https://hub.example.org"')
    _log_in(home)
    healthy = package.start_run("resnet50.pt", home=home, worker="none")
    break_package(module.parent.parent)
    forget_types()

    with pytest.raises(ConfigError, match="hubqueue-collector"):
        package.start_run("resnet50.pt", home=home, worker="none")

    with open_outbox(home) as outbox:
        assert [each["id"] for each in outbox.stats.runs()] == [healthy.id]
        assert outbox.stats.runs()[0]["label"] == "lab"


def test_a_key_of_before_stays_the_vendors_when_another_address_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    path.write_text('[hub]\nkey = "key-of-the-vendor"\n')
    path.chmod(0o600)
    vendors: DestinationSettings = registry.declaration("hub").settings("hub", "hub")
    own = registry.declaration("hub").settings("hub", "hub", url="https://hub.example.org")

    Credentials(path, {}).store(own, "key-of-our-own")

    assert Credentials(path, {}).keys(vendors) == ("key-of-the-vendor",)
    assert Credentials(path, {}).keys(own) == ("key-of-our-own",)
    Credentials(path, {}).store(vendors, "key-of-today")
    assert Credentials(path, {}).keys(vendors) == ("key-of-today",)
    assert "key-of-the-vendor" not in path.read_text()


@pytest.mark.parametrize(
    "outcome",
    [
        "Delivered(Remote(id='\\ud800'))",
        "Delivered(Remote(id=batch.run.id, url=object()))",
        "RetryLater('\\ud800')",
        "RetryLater('later', after=3)",
        "Blocked('wait', Scope.LANE)",
        "Blocked('wait', 'run')",
    ],
)
def test_an_outcome_that_cannot_be_written_is_a_failed_attempt(
    home: Path, installed: Path, collector: Collector, outcome: str
) -> None:
    transport = installed / "hubqueue_collector" / "transport.py"
    send = "def send(self, batch, attempt):"
    _replace(
        transport,
        send,
        f"{send}\n        from hubqueue.domain.outcome import Blocked, RetryLater\n        return {outcome}",
    )

    _assert_one_failed_attempt(home, collector)


def test_what_is_delivered_stays_so_when_a_reopened_transport_cannot_be_closed(
    home: Path, installed: Path, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, ready = installed / "hubqueue_collector" / "transport.py", tmp_path / "ready"
    monkeypatch.setenv("COLLECTOR_READY", str(ready))
    begin = "    def __init__(self, settings, keys, open_body):\n"
    wait = "        import os\n        open(os.environ['COLLECTOR_READY'])\n"
    _replace(transport, begin, begin + wait)
    _replace(transport, "self._api.close()", "1 / 0")
    configure(home, collector.url)
    _log_in(home)
    package.start_run("resnet50.pt", destination="lab", home=home, worker="none")

    with open_outbox(home) as outbox:
        worker = Worker(outbox, emit=lambda _fact: None)
        assert worker.start()
        ready.touch()
        while worker.step():
            assert worker.wait_free(60)
        worker.stop(timedelta(0))

        assert totals(outbox) == {"enqueued": 1, "delivered": 1}


def test_a_destination_that_registers_nothing_is_sent_to(
    home: Path, module: Path, collector: Collector
) -> None:
    _replace(module, LANES, "lanes=(Kind.METRICS, Kind.COMPLETION)")
    _replace(module, "    if continues:\n        return None\n", "    return None\n")
    configure(home, collector.url)
    _log_in(home)
    run = package.start_run("resnet50.pt", destination="lab", home=home, worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=0)

    with open_outbox(home) as outbox:
        _work(outbox)

        assert totals(outbox) == {"enqueued": 2, "delivered": 2}
    assert {path for path, _, _ in collector.requests} == {
        f"/projects/vision/runs/{run.id}/{what}" for what in ("metrics", "end")
    }


WITHOUT_KEY = """
from hubqueue.destinations.base import Delivered, Remote


class CollectorTransport:
    def __init__(self, settings, keys, open_body):
        pass

    def send(self, batch, attempt):
        return Delivered(Remote(id=batch.run.id))

    def close(self):
        pass
"""


def test_runs_of_a_destination_that_needs_no_key_any_more_can_be_sent(
    home: Path, module: Path, collector: Collector
) -> None:
    configure(home, collector.url)
    _log_in(home)
    package.start_run("resnet50.pt", destination="lab", home=home, worker="none")
    _replace(module, '(Secret("id"), Secret("secret"))', "()")
    transport = module.parent / "transport.py"
    transport.write_text(WITHOUT_KEY)

    with open_outbox(home) as outbox:
        _work(outbox)
        (concern,) = outbox.status()["attention"]
        assert totals(outbox) == {"enqueued": 1, "pending": 1}
        assert concern["hint"] == "send them without one: hubqueue readdress lab"
        (move,) = moves(outbox, ["lab"], run_id=None, to=None)
        move.carry_out()
        _work(outbox)

        assert totals(outbox) == {"enqueued": 1, "delivered": 1}
