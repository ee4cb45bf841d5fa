"""A destination of another package, as in docs/destinations.md: from the configuration to the deliveries."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from plugin_stage import (
    ID,
    SECRET,
    Collector,
    break_package,
    configure,
    in_this_process,
    install,
    plugin_environ,
    plugin_hubqueue,
    plugin_python,
    uninstall,
)
from stage import environ_of, hubqueue, totals

import hubqueue as package
from hubqueue.config import registry
from hubqueue.config.credentials import Credentials, check_key, secret_variables
from hubqueue.config.declaration import Key
from hubqueue.config.names import unread
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import ConfigError, CredentialsError
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.redact import clean
from hubqueue.outbox.database.sqlite import set_aside
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.outbox.reach import no_key
from hubqueue.sandbox import Sandbox
from hubqueue.worker.check import examine
from hubqueue.worker.closing import close_run
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.worker import Worker

BOTH = f"{ID}\n{SECRET}\n"
TRAIN = """
import hubqueue, sys
run = hubqueue.start_run("resnet50.pt", args={"lr": 0.1}, worker="none", strict=True, destination=sys.argv[1])
run.log_metrics({"loss": 1}, epoch=0)
if len(sys.argv) > 2:
    run.save_checkpoint(sys.argv[2], epoch=0)
run.finish(timeout=0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return install(tmp_path / "site")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def installed(folder: Path) -> Iterator[Path]:
    """The package in this process."""
    with in_this_process(folder) as present:
        yield present


def train(environ: dict[str, str], destination: str, *checkpoint: str) -> None:
    process = plugin_python(TRAIN, environ, destination, *checkpoint)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0, out


def status(environ: dict[str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(plugin_hubqueue(environ, "status", "--json").stdout)
    return shown


def test_the_package_of_the_document_delivers_a_whole_training(
    home: Path, folder: Path, collector: Collector, tmp_path: Path
) -> None:
    environ = plugin_environ(home, folder)
    configure(home, collector.url)
    weights = os.urandom(300_000)
    (tmp_path / "last.pt").write_bytes(weights)

    logged_in = hubqueue(environ, "login", "lab", stdin=BOTH)
    train(environ, "lab", str(tmp_path / "last.pt"))
    drained = plugin_hubqueue(environ, "drain", "--timeout", "60")
    checked = plugin_hubqueue(environ, "check")

    assert (logged_in.returncode, drained.returncode) == (0, 0), logged_in.stderr + drained.stderr
    assert collector.taken == {
        "start": {"model": "resnet50.pt", "args": {"lr": 0.1}},
        "metrics": {"0": {"loss": 1}},
        "checkpoints/last": weights,
        "end": {"state": "finished"},
    }
    assert all(path.startswith("/projects/vision/runs/") for path, _, _ in collector.requests)
    assert len({headers["Idempotency-Key"] for _, headers, _ in collector.requests}) == 4
    assert status(environ)["healthy"] is True
    for command in ("status", "runs"):  # it has no address to show, but it is registered
        shown = plugin_hubqueue(environ, command).stdout
        assert ("not registered yet" in shown, "  registered" in shown) == (False, True), shown
    assert (checked.returncode, "hubqueue-collector 1.2.3" in checked.stdout) == (0, True)
    stored = home / "credentials.toml"
    assert f'[lab."{collector.url}"]\nid = "{ID}"\nsecret = "{SECRET}"\n' in stored.read_text()
    for path in home.rglob("*"):
        if path.is_file() and path != stored:
            assert not any(each.encode() in path.read_bytes() for each in (ID, SECRET)), path


def test_pace_and_holds_work_as_for_every_destination(
    home: Path, installed: Path, collector: Collector
) -> None:
    configure(home, collector.url)
    limits = {"HUBQUEUE_DESTINATIONS__LAB__RATE_LIMITS__METRICS": "1 h"}
    with open_outbox(home, environ=limits) as outbox:
        target = outbox.config.destination("lab")
        outbox.credentials.store(target, Key(ID, {"secret": "another-secret-than-it-has"}))
        with package.start_run("resnet50.pt", destination="lab", home=home, worker="none") as run:
            run.log_metrics({"loss": 1.0}, epoch=0)
            _work(outbox)
            (row,) = outbox.stats.destinations()
            assert "the key was refused" in row["held"]
            assert collector.requests == []

            outbox.credentials.store(target, Key(ID, {"secret": SECRET}))
            outbox.registry.resume("lab")
            _work(outbox)
            run.log_metrics({"loss": 0.5}, epoch=1)
            _work(outbox)

            assert collector.taken["metrics"] == {"0": {"loss": 1.0}}
            assert totals(outbox)["pending"] == 1


def _work(outbox: Outbox) -> None:
    """Send everything that is due now."""
    worker = Worker(outbox, emit=lambda _fact: None)
    assert worker.start()
    while worker.step():
        assert worker.wait_free(60)
    worker.stop(timedelta(0))


# --- its two secrets


def _lab(url: str = "https://collector.example.org") -> DestinationSettings:
    return registry.declaration("collector").settings(name="lab", type="collector", url=url)


@pytest.mark.usefixtures("installed")
def test_a_key_has_all_its_secrets_from_one_source(tmp_path: Path) -> None:
    path, lab = tmp_path / "credentials.toml", _lab()
    Credentials(path, {}).store(lab, Key("stored-id", {"secret": "stored-secret"}))

    def found(**environ: str) -> list[tuple[str, ...]]:
        return [each.parts for each in Credentials(path, environ).keys(lab)]

    stored, named = ("stored-id", "stored-secret"), ("named-id", "named-secret")
    assert found() == [stored]
    assert found(HUBQUEUE_KEY_LAB="named-id", HUBQUEUE_SECRET_LAB="named-secret") == [named, stored]
    assert found(HUBQUEUE_KEY_LAB="named-id") == [stored]
    assert found(HUBQUEUE_SECRET_LAB="named-secret") == [stored]
    assert found(HUBQUEUE_KEY_LAB="named-id", HUBQUEUE_SECRET_LAB="short") == [stored]
    assert Credentials(path, {}).keys(_lab("https://other.example.org")) == ()


@pytest.mark.usefixtures("installed")
def test_both_secrets_are_stored_read_and_removed_together(tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    credentials = Credentials(path, {})
    here, there = _lab(), _lab("https://other.example.org")
    credentials.store(here, Key("id-of-here", {"secret": "secret-of-here"}))
    credentials.store(there, Key("id-of-there", {"secret": "secret-of-there"}))
    credentials.store(here, Key("id-of-today", {"secret": "secret-of-today"}))

    assert [each.parts for each in credentials.keys(here)] == [("id-of-today", "secret-of-today")]
    assert [each.parts for each in credentials.keys(there)] == [("id-of-there", "secret-of-there")]
    assert "of-here" not in path.read_text()

    credentials.forget("lab")
    assert (credentials.keys(here), "today" in path.read_text()) == ((), False)


@pytest.mark.parametrize("secret", ["", "two words", "short"])
@pytest.mark.usefixtures("installed")
def test_a_login_without_one_of_them_stores_nothing(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "credentials.toml"
    key = Key("id-of-here", {"secret": secret})

    with pytest.raises(CredentialsError, match="secret"):
        check_key(_lab(), key)
    with pytest.raises(CredentialsError):
        Credentials(path, {}).store(_lab(), key)

    assert not path.exists()


def test_an_incomplete_pair_is_not_a_key_and_names_what_is_missing(
    home: Path, installed: Path, collector: Collector
) -> None:
    configure(home, collector.url)

    def missing(**environ: str) -> tuple[str, str]:
        with open_outbox(home, environ=environ) as outbox:
            found = no_key(outbox, outbox.config.destination("lab"))
            assert outbox.key(outbox.config.destination("lab")) is None
            return found.what, found.hint

    assert missing() == (
        "there is no key for lab",
        "hubqueue login lab, or set HUBQUEUE_KEY_LAB and HUBQUEUE_SECRET_LAB",
    )
    with open_outbox(home, environ={}) as outbox:
        variables = secret_variables(outbox.config.destinations.values())
        both = {"HUBQUEUE_KEY_LAB": "x", "HUBQUEUE_SECRET_LAB": "x"}
        assert unread(both, outbox.config.destinations, variables) == ()
    what, hint = missing(HUBQUEUE_KEY_LAB=ID)
    assert "HUBQUEUE_KEY_LAB is set, but HUBQUEUE_SECRET_LAB is missing" in what
    assert hint == "set HUBQUEUE_SECRET_LAB"
    (home / "credentials.toml").write_text(f'[lab."{collector.url}"]\nid = "{ID}"\n')
    (home / "credentials.toml").chmod(0o600)
    what, hint = missing()
    assert ("no valid secret" in what, hint) == (True, "hubqueue login lab")
    assert ID not in what


def test_both_secrets_are_masked(home: Path, installed: Path, collector: Collector) -> None:
    configure(home, collector.url)
    named = {"HUBQUEUE_KEY_LAB": "id-of-the-masked", "HUBQUEUE_SECRET_LAB": "masked-twice-over"}
    with open_outbox(home, environ=named):
        assert clean("id-of-the-masked, masked-twice-over") == "***, ***"
    (home / "credentials.toml").write_text(
        '[gone."https://gone.example.org"]\npair = "of-a-type-that-is-gone"\n'
    )
    (home / "credentials.toml").chmod(0o600)
    with open_outbox(home, environ={}):
        assert clean("of-a-type-that-is-gone") == "***"
    with open_outbox(home, environ={}) as outbox:
        lab, of_login = outbox.config.destination("lab"), Credentials(home / "credentials.toml", {})
        of_login.store(lab, Key("id-of-a-login", {"secret": "given-to-a-worker"}))
        outbox.credentials.keys(lab)  # as a worker does that runs while a person logs in
        assert clean("id-of-a-login, given-to-a-worker") == "***, ***"
    collector.status, collector.says = 500, f"no access with {SECRET}"
    with open_outbox(home, environ={}) as outbox:
        outbox.credentials.store(outbox.config.destination("lab"), Key(ID, {"secret": SECRET}))
        with package.start_run("resnet50.pt", destination="lab", home=home, worker="none"):
            _work(outbox)
        errors = [lane["last_error"] for run in outbox.status()["runs"] for lane in run["lanes"]]

    assert any("no access with ***" in each for each in errors if each)


def test_a_declaration_cannot_name_a_secret_so_that_variables_collide() -> None:
    for names in (("id", "key"), ("id", "key_two"), ("id", "id"), ("secrets",), ("Id",), ("a__b",)):
        with pytest.raises(ValueError, match="cannot be named"):
            _declared(*names)
    _declared("id", "secret", "session_token")


def _declared(*names: str) -> object:
    import dataclasses

    from hubqueue.config.declaration import Secret

    return dataclasses.replace(registry.declaration("hub"), secrets=tuple(map(Secret, names)))


# --- a package that cannot be loaded, and a type that is not there


def test_a_broken_package_holds_only_its_own_runs(
    home: Path, folder: Path, collector: Collector, hub: Sandbox
) -> None:
    environ = plugin_environ(home, folder)
    configure(home, collector.url, "[destinations.hub]", f'url = "{hub.url}"')
    environ |= {"HUBQUEUE_KEY_HUB": "key-of-the-tests", "HUBQUEUE_KEY_LAB": ID, "HUBQUEUE_SECRET_LAB": SECRET}
    for destination in ("lab", "hub"):
        train(environ, destination)
    sound = (folder / "hubqueue_collector" / "__init__.py").read_text()
    break_package(folder)

    drained, checked = plugin_hubqueue(environ, "drain", "--timeout", "30"), plugin_hubqueue(environ, "check")
    shown = status(environ)
    started = plugin_hubqueue(environ, "enqueue", "run", "resnet50.pt", "--to", "lab")

    assert (drained.returncode, len(hub.models)) == (3, 1), drained.stderr
    assert "cannot be loaded from hubqueue-collector: ModuleNotFoundError" in checked.stdout
    assert checked.returncode == 1
    (concern,) = shown["attention"]
    assert "hubqueue-collector" in concern["what"]
    assert [each["held"] for each in shown["destinations"]] == [None, None]
    lanes = [lane for run in shown["runs"] if run["destination"] == "lab" for lane in run["lanes"]]
    assert lanes and not any(lane["attempts"] or lane["last_error"] for lane in lanes)
    assert (started.returncode, "hubqueue-collector" in started.stderr) == (2, True)

    (folder / "hubqueue_collector" / "__init__.py").write_text(sound)
    assert plugin_hubqueue(environ, "drain", "--timeout", "30").returncode == 0
    assert set(collector.taken) == {"start", "metrics", "end"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("raise SystemError('half installed')", "SystemError: half installed"),
        ("from hubqueue.destinations.base import no_such_name", "ImportError"),
        ("import sys; sys.exit('needs a newer Python')", "SystemExit: needs a newer Python"),
    ],
)
def test_any_error_of_a_package_is_reported_with_its_name(
    home: Path, folder: Path, installed: Path, line: str, why: str
) -> None:
    break_package(folder, line)
    configure(home, "https://collector.example.org", 'default_destination = "lab"')

    with open_outbox(home, environ={}) as outbox:
        missing = registry.absent(outbox.config.destination("lab").type)

    assert missing is not None and "hubqueue-collector" in missing.problem and why in missing.problem
    with pytest.raises(ConfigError, match="hubqueue-collector"):
        package.start_run("resnet50.pt", destination="lab", home=home, worker="none")


def test_a_type_that_is_not_installed_is_an_error_with_a_hint(home: Path) -> None:
    configure(home, "https://collector.example.org")

    done = hubqueue(environ_of(home), "status")

    assert done.returncode == 2
    assert "destinations.lab.type must be 'hub' or 'platform'" in done.stderr
    assert "install it with pip" in done.stderr


def test_the_rows_of_a_removed_type_stop_nothing(
    home: Path, installed: Path, collector: Collector, hub: Sandbox
) -> None:
    configure(home, collector.url)
    with open_outbox(home, environ={}) as outbox:
        outbox.credentials.store(outbox.config.destination("lab"), Key(ID, {"secret": SECRET}))
    gone, left = (
        package.start_run("resnet50.pt", destination="lab", home=home, worker="none") for _ in range(2)
    )
    gone.log_metrics({"loss": 1.0}, epoch=0)
    (home / "config.toml").unlink()
    uninstall(installed)
    assert not registry.is_known("collector")

    with open_outbox(home, environ={"ULTRALYTICS_HUB_API": hub.url, "HUB_API_KEY": "key-of-hub"}) as outbox:
        with pytest.raises(ConfigError, match="unknown type"):
            close_run(outbox, left.id, RunState.INTERRUPTED)
        janitor = Janitor(outbox, lambda _fact: None)
        janitor.scan()
        janitor.tidy()
        _work(outbox)
        shown = outbox.status()

    assert totals(outbox)["pending"] == 3  # two starts and metrics
    assert any("lab" in each["what"] and "not configured" in each["what"] for each in shown["attention"])


def test_salvage_recovers_the_runs_of_a_removed_type(
    home: Path, installed: Path, collector: Collector
) -> None:
    configure(home, collector.url)
    with open_outbox(home, environ={}) as outbox:
        outbox.credentials.store(outbox.config.destination("lab"), Key(ID, {"secret": SECRET}))
    run = package.start_run("resnet50.pt", destination="lab", home=home, worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=0)
    (home / "config.toml").unlink()
    uninstall(installed)
    with closing(sqlite3.connect(home / "outbox.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    set_aside(home / "outbox.db")

    with open_outbox(home, environ={}) as outbox:
        Janitor(outbox, lambda _fact: None).salvage()
        rows = [(each.label, each.type, each.url) for each in outbox.addresses.all() if each.label == "lab"]
        owed = totals(outbox)

    assert rows == [("lab", "collector", collector.url)]
    assert owed == {"enqueued": 3, "pending": 3}  # its start, its metrics, its end


_BEGIN = 'self._root, self._open_body = f"/projects/{settings.project}/runs", open_body'


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("def send(", "def sent("),
        (_BEGIN, "1 / 0"),
        ("self._api.close()", "1 / 0"),
        (_BEGIN, "raise SystemExit(1)"),
    ],
    ids=["cannot send", "cannot be opened", "cannot be closed", "wants to exit"],
)
def test_an_error_in_a_packages_code_stops_no_other_destination(
    home: Path,
    installed: Path,
    collector: Collector,
    hub: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    was: str,
    now: str,
) -> None:
    monkeypatch.setenv("HUBQUEUE_KEY_HUB", "key-of-the-tests")
    module = installed / "hubqueue_collector" / "transport.py"
    assert was in module.read_text()
    module.write_text(module.read_text().replace(was, now))
    configure(home, collector.url, "[destinations.hub]", f'url = "{hub.url}"')
    with open_outbox(home) as outbox:
        outbox.credentials.store(outbox.config.destination("lab"), Key(ID, {"secret": SECRET}))
        for destination in ("lab", "hub"):
            package.start_run("resnet50.pt", destination=destination, home=home, worker="none")
        _work(outbox)
        checked = examine(str(home), None, online=True, set_aside=False)

    assert len(hub.models) == 1
    details = [each.detail for each in checked if each.what == "destination"]
    assert any("hub" in each and "accepts the key" in each for each in details)
    if now == "1 / 0":
        assert any("lab cannot be checked: ZeroDivisionError" in each for each in details)


TO_A_FILE = """
from pathlib import Path
from hubqueue.destinations.base import Delivered, Remote


class CollectorTransport:
    def __init__(self, settings, keys, open_body):
        self._path, self._keys = Path(settings.project), keys

    def send(self, batch, attempt):
        attempt.on_start()
        with self._path.open("a") as file:
            file.write(f"{batch.kind} {self._keys()}\\n")
        return Delivered(Remote(id=batch.run.id))

    def check(self):
        return Delivered()

    def close(self):
        pass
"""


def test_a_destination_without_secrets_needs_no_key(
    home: Path, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = installed / "hubqueue_collector" / "__init__.py"
    declared.write_text(declared.read_text().replace('(Secret("id"), Secret("secret"))', "()"))
    (installed / "hubqueue_collector" / "transport.py").write_text(TO_A_FILE)
    configure(home, "https://collector.example.org")
    monkeypatch.setenv("HUBQUEUE_DESTINATIONS__LAB__PROJECT", str(tmp_path / "taken"))

    with package.start_run("resnet50.pt", destination="lab", home=home, worker="none") as run:
        run.log_metrics({"loss": 1.0}, epoch=0)
    with open_outbox(home) as outbox:
        (concern,) = outbox.status()["attention"]
        assert "no worker is running" in concern["what"]
        _work(outbox)
        checked = examine(str(home), None, online=True, set_aside=False)

        assert totals(outbox) == {"enqueued": 3, "delivered": 3}
    assert (tmp_path / "taken").read_text() == "registration ()\nmetrics ()\ncompletion ()\n"
    assert [each for each in checked if not each.ok] == []
    refused = hubqueue(plugin_environ(home, installed), "login", "lab", stdin="12345678\n")
    assert (refused.returncode, "needs no key" in refused.stderr) == (2, True)
