"""P10: status and exit codes report what is true, even when worker, server and trainer are all dead."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from stage import (
    PATIENCE,
    end,
    environ_of,
    hubqueue,
    kill,
    log,
    must_claim,
    new_run,
    python,
    start_worker,
    wait_until,
)

from hubqueue.cli.status_text import status_text
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("migrated_home")

TRAINER = """
import hubqueue, threading
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
print(run.id, flush=True)
threading.Event().wait(100)
"""


def status(environ: dict[str, str], *arguments: str) -> dict[str, Any]:
    shown = hubqueue(environ, "status", "--json", *arguments)
    value: dict[str, Any] = json.loads(shown.stdout)
    return value


@pytest.mark.usefixtures("new_home")
def test_an_unused_home_is_reported_and_not_created(home: Path) -> None:
    environ = environ_of(home)

    shown = hubqueue(environ, "status", "--check")

    assert (shown.returncode, shown.stderr) == (0, "")
    assert "nothing was enqueued here yet" in shown.stdout
    assert status(environ)["totals"]["enqueued"] == 0
    assert not home.exists()


def test_a_dead_trainer_shows_as_interrupted_without_any_worker(home: Path) -> None:
    environ = environ_of(home)
    trainer = python(TRAINER, environ)
    assert trainer.stdout is not None
    trainer.stdout.readline()
    assert status(environ)["runs"][0]["state"] == "running"

    kill(trainer)

    shown = status(environ)
    assert shown["runs"][0]["state"] == "interrupted"
    assert shown["runs"][0]["next_heartbeat_at"] is None


def test_a_dead_worker_is_not_alive(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    with open_outbox(home, environ=environ) as outbox:
        log(outbox, new_run(outbox), 0)
    hub.fail("any:503")
    worker = start_worker(environ)
    wait_until(lambda: status(environ)["worker"]["alive"])
    assert status(environ)["worker"]["pid"] == worker.pid

    kill(worker)

    shown = status(environ)
    assert (shown["worker"]["alive"], shown["worker"]["pid"]) == (False, worker.pid)
    assert not shown["healthy"]
    assert hubqueue(environ, "status", "--check").returncode == 1


def test_status_is_true_when_everything_is_dead(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    trainer = python(TRAINER, environ)
    assert trainer.stdout is not None
    run_id = trainer.stdout.readline().strip()
    hub.fail("any:503")
    worker = start_worker(environ)
    wait_until(lambda: status(environ)["totals"]["retrying"] > 0)
    kill(trainer)
    kill(worker)
    hub.stop()

    shown = status(environ)
    text = hubqueue(environ, "status").stdout

    (run,) = shown["runs"]
    lane = next(lane for lane in run["lanes"] if lane["kind"] == "registration")
    assert (run["id"], run["state"]) == (run_id, "interrupted")
    assert (lane["pending"], "503" in lane["last_error"]) == (1, True)
    assert shown["totals"]["pending"] == 2
    assert "no worker is running" in text
    assert "503" in text


def test_drain_reports_whether_something_is_left(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    assert hubqueue(environ, "drain").returncode == 0
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
    hub.fail("any:503")

    left = hubqueue(environ, "drain", "--timeout", "1")
    assert (left.returncode, "2 uploads not sent" in left.stderr) == (3, True)
    hub.heal()
    done = hubqueue(environ, "drain", "--timeout", "60")

    assert (done.returncode, done.stdout.strip()) == (0, "everything is delivered")
    assert len(hub.metrics(hub.models[0])) == 1


def test_a_drain_ends_when_a_person_has_to_act(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hub.fail("any:401")

    shown = hubqueue(environ, "drain")

    assert shown.returncode == 3
    assert "on hold" in shown.stderr
    assert status(environ)["destinations"][0]["held"]
    assert run in hubqueue(environ, "runs").stdout


@pytest.mark.usefixtures("new_home")
@pytest.mark.parametrize("damage", ["garbage", "truncated", "alien"])
def test_a_damaged_or_alien_outbox_is_never_a_healthy_empty_queue(home: Path, damage: str) -> None:
    environ = environ_of(home)
    database = home / "outbox.db"
    if damage == "alien":
        import sqlite3

        home.mkdir(mode=0o700)
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE recipes (name)")
        connection.close()
    else:
        with open_outbox(home, environ={}) as outbox:
            log(outbox, new_run(outbox), *range(300))
        content = database.read_bytes()
        database.write_bytes(
            b"not a database" * 5000 if damage == "garbage" else content[: len(content) // 3]
        )
        for side in ("-wal", "-shm"):
            database.with_name(database.name + side).unlink(missing_ok=True)
    before = database.read_bytes()

    shown = [
        hubqueue(environ, "status"),
        hubqueue(environ, "status", "--check", "--json"),
        hubqueue(environ, "check", "--offline"),
    ]

    assert all(each.returncode in (1, 2) for each in shown[1:])
    assert "Traceback" not in "".join(each.stderr for each in shown)
    assert database.read_bytes() == before
    if damage != "alien":
        hubqueue(environ, "check", "--offline", "--set-aside")
        (aside,) = [
            each
            for each in home.glob("outbox.db.damaged-*")
            if not each.name.endswith(("-wal", "-shm", ".saved"))
        ]
        assert aside.read_bytes() == before
        assert not status(environ)["healthy"]


def test_an_outbox_of_a_newer_version_is_refused_clearly(home: Path) -> None:
    from sqlalchemy import text

    with open_outbox(home, environ={}) as outbox, outbox.database.write() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    shown = hubqueue(environ_of(home), "status")

    assert shown.returncode == 2
    assert "9999" in shown.stderr
    assert "upgrade" in shown.stderr


def test_moments_are_shown_in_todays_wall_clock(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={"HUBQUEUE_KEY_HUB": "key-of-the-tests"}, clock=clock) as outbox:
        log(outbox, new_run(outbox), 0)
        clock.advance(60)
        clock.jump(86_400)

        shown = outbox.status()

    lane = shown["runs"][0]["lanes"][1]
    assert lane["oldest_age_s"] == 60
    assert datetime.fromisoformat(lane["next_send_at"]) == clock.wall()


def test_in_flight_and_retrying_are_counted_separately(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    log(outbox, run, 0, 1)
    lease = must_claim(outbox)
    assert outbox.status()["totals"]["in_flight"] == 2

    outbox.settlement.retry(
        lease, at=outbox.database.now(), reason="503 Service Unavailable", started_at=None
    )

    shown = outbox.status()["runs"][0]["lanes"][1]
    assert (shown["in_flight"], shown["retrying"], shown["attempts"]) == (0, 2, 1)
    assert shown["last_error"] == "503 Service Unavailable"


def test_a_destination_missing_from_the_configuration_is_reported(home: Path) -> None:
    environ = {
        "HUBQUEUE_DESTINATIONS__OLD__TYPE": "hub",
        "HUBQUEUE_DESTINATIONS__OLD__URL": "http://127.0.0.1:9",
    }
    with open_outbox(home, environ=environ) as outbox:
        outbox.note_destinations()
        run, _ = outbox.registry.start_run(destination="old", model="m", kinds=["metrics"], remote_id="x")
        log(outbox, run, 0)

    with open_outbox(home, environ={}) as later:
        shown = later.status()

    old = next(each for each in shown["destinations"] if each["name"] == "old")
    assert "is not configured here" in old["obstacle"]
    assert not shown["healthy"]


def test_a_stopped_worker_hands_back_its_leases(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    environ = environ_of(home, hub.url, HUBQUEUE_WORKER__GRACE="0.2")
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    (tmp_path / "last.pt").write_bytes(os.urandom(100_000))
    assert hubqueue(environ, "drain").returncode == 0
    hubqueue(environ, "enqueue", "checkpoint", "--run", run, "--epoch", "0", str(tmp_path / "last.pt"))
    hub.fail("ckpt:silence:seconds=60")
    worker = start_worker(environ)
    wait_until(lambda: status(environ)["totals"]["in_flight"] == 1)

    output = end(worker)

    shown = status(environ)
    assert worker.returncode == 0, output
    assert (shown["totals"]["in_flight"], shown["totals"]["pending"], shown["worker"]["id"]) == (0, 1, None)
    assert shown["runs"][0]["lanes"][2]["attempts"] == 0


def test_status_and_check_lift_no_hold(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")
    hub.fail("any:401")
    hubqueue(environ, "drain")

    elsewhere = environ_of(home, "http://127.0.0.1:9")
    hubqueue(elsewhere, "status")
    hubqueue(elsewhere, "check")

    assert status(elsewhere)["destinations"][0]["held"]


def test_a_drain_reports_a_rejected_entry(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "2", "loss=1")
    hub.fail("metrics:400:epoch=2")

    shown = hubqueue(environ, "drain")

    assert shown.returncode == 1
    assert "1 entry was refused" in shown.stderr
    assert "everything is delivered" not in shown.stdout


def test_damage_behind_the_header_is_found_and_set_aside(home: Path) -> None:
    environ = environ_of(home)
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), *range(500))
    with (home / "outbox.db").open("r+b") as file:
        for page in range(5, 30):
            file.seek(4096 * page)
            file.write(b"\xff" * 8)

    assert hubqueue(environ, "check", "--offline").returncode == 1
    shown = hubqueue(environ, "check", "--offline", "--set-aside")

    assert "is kept as" in shown.stdout
    assert "default destination: hub" in shown.stdout
    assert not status(environ)["healthy"]
    assert len(list(home.glob("outbox.db.damaged-*"))) >= 1


def test_a_second_signal_ends_the_grace(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    environ = environ_of(home, hub.url, HUBQUEUE_WORKER__GRACE="3600")
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")
    hub.fail("any:silence:seconds=100")
    worker = start_worker(environ)
    wait_until(lambda: status(environ)["totals"]["in_flight"] == 1)

    def ended_after_another_signal() -> bool:
        worker.terminate()
        return worker.poll() is not None

    wait_until(ended_after_another_signal)

    assert worker.returncode in (0, -signal.SIGTERM)  # the last signal may meet the end of the interpreter
    assert status(environ)["totals"]["in_flight"] == 0


def test_resume_tries_at_once_instead_of_after_the_backoff(outbox: Outbox, clock: FakeClock) -> None:
    from datetime import timedelta

    from stage import claim

    run = new_run(outbox)
    log(outbox, run, 0)
    later = outbox.database.now() + timedelta(seconds=300)
    outbox.settlement.retry(must_claim(outbox), at=later, reason="503", started_at=outbox.database.now())
    clock.advance(10)
    assert claim(outbox) is None

    outbox.registry.resume("hub")

    assert claim(outbox) is not None


@pytest.mark.parametrize(
    ("rule", "headline"),
    [
        ("html", "waiting  hub: response is not from the hub (login page or wrong URL?) for "),
        (
            "redirect:to=http://127.0.0.2:9/",
            "waiting  hub: 302: 127.0.0.1 redirects to 127.0.0.2; not followed, for ",
        ),
        ("cut-body", "waiting  hub: the response was cut off, for "),
        ("503", "waiting  hub responds 503 Service Unavailable for "),
        ("close", "waiting  hub unreachable for "),
        ("reset", "waiting  hub unreachable for "),
    ],
)
def test_a_hub_is_called_unreachable_only_where_no_response_came(
    hub: Sandbox, home: Path, clock: FakeClock, rule: str, headline: str
) -> None:
    with open_outbox(home, environ=environ_of(home, hub.url), clock=clock) as outbox:
        log(outbox, new_run(outbox), 0)
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()
        hub.fail(f"any:{rule}")

        worker.step()
        assert worker.wait_free(PATIENCE)
        shown = status_text(outbox.status(), datetime.fromtimestamp(clock.wall().timestamp(), UTC))
        worker.stop()

    assert click.unstyle(shown).startswith(headline), shown
