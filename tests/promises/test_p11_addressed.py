"""P11: an entry is sent only to the address, and with the account, that its run was started for.

Two shells of one person share a home. A shell does not send what it lacks the address or the key for, and reports it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from relay import Relay
from stage import TERMS, ZERO, end, environ_of, hubqueue, platform_environ, python, start_worker, wait_until

from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import LeaseLost
from hubqueue.domain.outcome import Remote
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("migrated_home")

KEY_A, KEY_B = "key-of-account-a", "key-of-account-b"
TRAIN = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", worker=sys.argv[1], strict=True)
run.log_metrics({"loss": 1}, epoch=0)
left = run.finish(timeout=float(sys.argv[2]))
print(run.id, run.remote_id, bool(left), flush=True)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "other") as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def _workers_end(home: Path) -> Iterator[None]:
    """End the detached workers of a test with the test."""
    yield
    if not home.exists():
        return
    with open_outbox(home, environ={}) as outbox:
        workers = outbox.stats.workers()
    for worker in workers:
        try:
            os.kill(worker["pid"], signal.SIGTERM)
        except ProcessLookupError:
            continue


def train(environ: dict[str, str], mode: str = "none", timeout: float = 0) -> str:
    """Run a whole training in an environment. Returns the last line it printed."""
    process = python(TRAIN, environ, mode, str(timeout))
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0, out
    return out.splitlines()[-1]


def shell(home: Path, url: str | None, key: str | None, **more: str) -> dict[str, str]:
    environ = environ_of(home, url, **{"HUBQUEUE_DEFAULT_DESTINATION": "hub", **more})
    environ.pop("HUB_API_KEY")
    return environ if key is None else environ | {"HUB_API_KEY": key}


def status(environ: dict[str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(hubqueue(environ, "status", "--json").stdout)
    return shown


def test_a_shell_with_another_address_does_not_send_the_run(hub: Sandbox, other: Sandbox, home: Path) -> None:
    ours, theirs = shell(home, hub.url, KEY_A), shell(home, other.url, KEY_B)
    train(ours)

    drained = hubqueue(theirs, "drain", "--timeout", "20")
    shown = status(theirs)

    assert (drained.returncode, other.requests) == (3, [])
    assert "another address" in drained.stderr
    (concern,) = shown["attention"]
    assert hub.url in concern["what"] and other.url in concern["what"]
    assert "hubqueue readdress hub" in concern["hint"]
    assert shown["runs"][0]["address"] == "hub"
    assert (shown["destinations"][0]["url"], shown["destinations"][0]["held"]) == (hub.url, None)
    assert hubqueue(ours, "drain", "--timeout", "30").returncode == 0
    assert len(hub.models) == 1


def test_a_shell_without_variables_changes_nothing(hub: Sandbox, home: Path) -> None:
    ours = shell(home, hub.url, KEY_A)
    train(ours)
    bare = shell(home, None, None)

    drained = hubqueue(bare, "drain", "--timeout", "20")

    assert drained.returncode == 3
    assert [(each["url"], each["held"]) for each in status(ours)["destinations"]] == [(hub.url, None)]
    assert status(bare)["healthy"] is False
    assert hubqueue(ours, "drain", "--timeout", "30").returncode == 0


def test_a_drain_without_variables_does_not_disturb_the_worker_that_has_them(
    hub: Sandbox, home: Path
) -> None:
    ours = shell(home, hub.url, KEY_A)
    hub.fail("metrics:503")
    worker = start_worker(ours)
    train(ours)
    wait_until(lambda: status(ours)["totals"]["retrying"])

    bare = hubqueue(shell(home, None, None), "drain", "--timeout", "2")
    hub.heal()

    assert bare.returncode == 3  # the worker was still retrying
    wait_until(lambda: status(ours)["totals"]["pending"] == 0)
    assert status(shell(home, None, None))["healthy"]
    end(worker)


def test_what_nobody_can_send_here_has_no_next_time(hub: Sandbox, home: Path) -> None:
    ours = shell(home, hub.url, KEY_A)
    bare = platform_environ(home, hub.url)
    bare.pop("ULTRALYTICS_API_KEY")
    hub.fail("any:503")
    worker = start_worker(ours)
    train(ours)
    hubqueue(bare, "enqueue", "run", "yolov8n.pt")
    wait_until(lambda: status(ours)["totals"]["retrying"])

    seen: list[dict[str, Any]] = []

    def is_between_attempts() -> bool:
        seen.append(status(bare))
        (served,) = [each for each in seen[-1]["runs"] if each["destination"] == "hub"]
        return served["lanes"][0]["next_send_at"] is not None  # None while an attempt is in flight

    wait_until(is_between_attempts)
    shown, text = seen[-1], hubqueue(bare, "status").stdout
    end(worker)

    (keyless,) = [each for each in shown["runs"] if each["destination"] == "platform"]
    assert [lane["next_send_at"] for lane in keyless["lanes"]] == [None] * len(keyless["lanes"])
    assert keyless["next_heartbeat_at"] is None
    (line,) = [each for each in text.splitlines() if "not sent: " in each]
    assert "there is no key for platform" in line
    assert "next" not in line


def test_two_accounts_at_one_address_are_never_mixed(hub: Sandbox, home: Path) -> None:
    with Relay(hub.url) as relay:
        first, second = shell(home, relay.url, KEY_A), shell(home, relay.url, KEY_B)
        train(first)
        assert hubqueue(second, "drain", "--timeout", "20").returncode == 3
        assert relay.keys == []
        train(second)

        assert hubqueue(second, "drain", "--timeout", "30").returncode == 3
        assert {key for _, key in relay.keys} == {KEY_B}
        relay.keys.clear()
        assert hubqueue(first, "drain", "--timeout", "30").returncode == 0
        assert {key for _, key in relay.keys} == {KEY_A}
    assert len(hub.models) == 2


def test_the_next_run_gets_a_worker_with_its_own_environment(
    hub: Sandbox, other: Sandbox, home: Path
) -> None:
    slow = {"HUBQUEUE_WORKER__IDLE_EXIT": "60"}
    first, second = shell(home, hub.url, KEY_A, **slow), shell(home, other.url, KEY_B, **slow)

    # Within the idle time of the first one's worker.
    assert train(first, "auto", 60).endswith("False")
    assert train(second, "auto", 60).endswith("False")

    assert (len(hub.models), len(other.models)) == (1, 1)
    assert [len(hub.metrics(hub.models[0])), len(other.metrics(other.models[0]))] == [1, 1]


def test_two_runs_of_one_environment_share_a_worker(hub: Sandbox, home: Path) -> None:
    environ = shell(home, hub.url, KEY_A, HUBQUEUE_WORKER__IDLE_EXIT="60")
    train(environ, "auto", 60)
    worker = status(environ)["worker"]["pid"]

    train(environ, "auto", 60)

    with open_outbox(home, environ={}) as outbox:
        assert [row["pid"] for row in outbox.stats.workers()] == [worker]


def test_a_destination_is_sent_only_by_the_shell_that_knows_it(hub: Sandbox, home: Path) -> None:
    knows = shell(
        home, None, None,
        HUBQUEUE_DESTINATIONS__LAB__TYPE="hub",
        HUBQUEUE_DESTINATIONS__LAB__URL=hub.url,
        HUBQUEUE_DEFAULT_DESTINATION="lab",
        HUBQUEUE_KEY_LAB=KEY_A,
    )  # fmt: skip
    train(knows)
    bare = shell(home, None, None)

    assert hubqueue(bare, "drain", "--timeout", "20").returncode == 3
    checked = hubqueue(bare, "check", "--offline")
    (concern,) = status(bare)["attention"]
    assert f"destination lab ({hub.url}) is not configured here" in concern["what"]
    assert (checked.returncode, "lab" in checked.stdout) == (1, True)
    assert hubqueue(knows, "drain", "--timeout", "30").returncode == 0


def test_an_address_that_is_gone_is_named_and_can_be_replaced(
    hub: Sandbox, other: Sandbox, home: Path
) -> None:
    gone, new = shell(home, other.url, KEY_A), shell(home, hub.url, KEY_A)
    train(gone)
    other.stop()

    drained = hubqueue(gone, "drain", "--timeout", "1")
    assert drained.returncode == 3
    checked = hubqueue(new, "check")
    assert (checked.returncode, other.url in checked.stdout) == (1, True)
    assert hub.models == []

    moved = hubqueue(new, "readdress", "hub")

    assert moved.returncode == 0, moved.stderr
    assert hub.url in moved.stdout and other.url in moved.stdout
    assert hubqueue(new, "drain", "--timeout", "30").returncode == 0
    assert len(hub.models) == 1


def test_a_run_without_a_key_is_sent_with_the_first_one_for_its_address(
    hub: Sandbox, other: Sandbox, home: Path
) -> None:
    keyless = shell(home, hub.url, None)
    train(keyless)
    shown = status(keyless)
    (concern,) = shown["attention"]
    assert "there is no key for hub" in concern["what"]
    assert "hubqueue login hub" in concern["hint"]
    assert shown["destinations"][0]["held"] is None

    assert hubqueue(shell(home, other.url, KEY_B), "drain", "--timeout", "20").returncode == 3
    assert hubqueue(keyless, "login", "hub", stdin=KEY_A).returncode == 0
    assert hubqueue(keyless, "drain", "--timeout", "30").returncode == 0
    assert (len(hub.models), other.requests) == (1, [])


def test_a_stored_key_is_sent_to_no_other_host(hub: Sandbox, other: Sandbox, home: Path) -> None:
    assert hubqueue(shell(home, hub.url, None), "login", "hub", stdin=KEY_A).returncode == 0
    with Relay(other.url) as relay:
        elsewhere = shell(home, relay.url, None)

        checked = hubqueue(elsewhere, "check")
        train(elsewhere)
        hubqueue(elsewhere, "drain", "--timeout", "5")

        assert relay.keys == []
    assert checked.returncode == 1
    assert f"the stored key is for {hub.url}" in checked.stdout


def test_a_login_takes_over_the_runs_of_the_key_that_it_replaces(hub: Sandbox, home: Path) -> None:
    with Relay(hub.url) as relay:
        environ = shell(home, relay.url, None)
        hubqueue(environ, "login", "hub", stdin=KEY_A)
        train(environ)

        output = hubqueue(environ, "login", "hub", stdin=KEY_B).stdout

        assert "1 run of the replaced key will be sent with this key" in output
        assert hubqueue(environ, "drain", "--timeout", "30").returncode == 0
        assert {key for _, key in relay.keys} == {KEY_B}


def test_the_hold_of_one_account_does_not_stop_another(home: Path, tmp_path: Path) -> None:
    with Sandbox(tmp_path / "hub", keys=(KEY_B,)) as hub:
        refused, welcome = shell(home, hub.url, KEY_A), shell(home, hub.url, KEY_B)
        train(refused)
        assert hubqueue(refused, "drain", "--timeout", "30").returncode == 3
        assert "the key was refused" in status(refused)["destinations"][0]["held"]

        train(welcome)

        # The other account's run is left.
        assert hubqueue(welcome, "drain", "--timeout", "30").returncode == 3
        assert len(hub.models) == 1
        held = {each["address"]: each["held"] for each in status(welcome)["destinations"]}
        assert len(held) == 2 and sum(why is not None for why in held.values()) == 1


def test_a_run_is_resumed_only_at_its_address_and_account(hub: Sandbox, other: Sandbox, home: Path) -> None:
    resume = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True, resume=sys.argv[1])
print(run.id, flush=True)
"""
    run_id = train(shell(home, hub.url, KEY_A)).split()[0]

    def resumed(environ: dict[str, str]) -> str:
        return python(resume, environ, run_id).communicate(timeout=60)[0].splitlines()[-1]

    assert resumed(shell(home, hub.url, KEY_A)) == run_id
    assert resumed(shell(home, hub.url, None)) == run_id
    assert resumed(shell(home, hub.url, KEY_B)) != run_id
    assert resumed(shell(home, other.url, KEY_A)) != run_id


def test_the_default_destination_is_the_one_that_has_a_key(hub: Sandbox, home: Path) -> None:
    code = 'import hubqueue; print(hubqueue.start_run("yolov8n.pt", worker="none"))'

    def chosen(environ: dict[str, str]) -> str:
        return python(code, environ).communicate(timeout=60)[0].splitlines()[-1]

    bare = {k: v for k, v in environ_of(home).items() if k != "HUB_API_KEY"}
    assert "to platform" in chosen(bare)
    assert "to hub" in chosen(bare | {"HUB_API_KEY": KEY_A})
    assert "to hub" in chosen(bare | {"ULTRALYTICS_HUB_API": hub.url})
    assert "to platform" in chosen(bare | {"HUB_API_KEY": KEY_A, "ULTRALYTICS_API_KEY": KEY_B})
    named = platform_environ(home, hub.url)
    named.pop("HUBQUEUE_DEFAULT_DESTINATION")
    assert "to platform" in chosen(named)


def test_no_account_is_stored_as_its_key(home: Path) -> None:
    train(shell(home, "http://127.0.0.1:9", KEY_A))

    assert KEY_A.encode() not in b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    with open_outbox(home, environ={}) as outbox:
        accounts = [each.account for each in outbox.addresses.all() if each.account]
    assert accounts and all("$" in each for each in accounts)


def test_a_key_of_one_destination_is_never_sent_to_another_of_its_type(
    hub: Sandbox, tmp_path: Path, home: Path
) -> None:
    """A 401 is no exception: the destination is put on hold, and no other key is tried."""
    with ExitStack() as stack:
        lab = stack.enter_context(Sandbox(tmp_path / "lab", keys=("key-that-nobody-has",)))
        at_hub, at_lab = (stack.enter_context(Relay(each.url)) for each in (hub, lab))
        both = shell(
            home,
            None,
            "key-of-the-type",
            HUBQUEUE_CONFIG=str(tmp_path / "config.toml"),
            HUBQUEUE_KEY_HUB=KEY_A,
        )
        (tmp_path / "config.toml").write_text(
            f'[destinations.hub]\nurl = "{at_hub.url}"\n'
            f'[destinations.lab]\ntype = "hub"\nurl = "{at_lab.url}"\n'
        )
        assert hubqueue(both, "login", "lab", stdin=KEY_B).returncode == 0
        for destination in ("hub", "lab"):
            hubqueue(both, "enqueue", "run", "yolov8n.pt", "--to", destination)

        drained = hubqueue(both, "drain", "--timeout", "30")

        assert drained.returncode == 3
        assert {key for _, key in at_hub.keys} == {KEY_A}
        assert {key for _, key in at_lab.keys} == {KEY_B}
    assert len(hub.models) == 1


def test_a_login_does_not_take_over_another_account_on_hold(hub: Sandbox, home: Path) -> None:
    """The hold is about its certificate or its address, not about its key."""
    train(shell(home, hub.url, KEY_A))
    with open_outbox(home, environ={}) as outbox, outbox.database.write() as tx:
        tx.exec_driver_sql(
            "UPDATE destinations SET held = 'certificate refused: not trusted' WHERE account > ''"
        )

    login = hubqueue(shell(home, hub.url, None), "login", "hub", stdin=KEY_B)

    assert (login.returncode, "will be sent with this key" in login.stdout) == (0, False)
    assert hubqueue(shell(home, hub.url, KEY_A), "drain", "--timeout", "30").returncode == 0


def test_a_key_that_is_missing_for_a_moment_stops_no_lane(home: Path, hub: Sandbox) -> None:
    """A checkpoint was in flight when the key disappeared. All lanes of the destination return with the key."""
    environ = shell(home, hub.url, None)
    with open_outbox(home, environ=environ) as outbox:
        target = outbox.config.destination("hub")
        outbox.credentials.store(target, KEY_A)
        outbox.note_destinations()
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()
        (name,) = worker.serves
        pool = next(each for each in worker._pools if Kind.CKPT in each.paces and each.destination == name)
        pool.sending[1] = None  # type: ignore[assignment]  # an upload
        kept = outbox.home.credentials.read_bytes()
        outbox.home.credentials.unlink()
        worker.scan()

        outbox.home.credentials.write_bytes(kept)
        outbox.home.credentials.chmod(0o600)
        worker.scan()

        pool.sending.clear()
        kinds = {kind for each in worker._pools if not each.retired for kind in each.paces}
        worker.stop(timedelta(0))
    assert {Kind.METRICS, Kind.CKPT, Kind.HEARTBEAT} <= kinds


def test_another_accounts_worker_does_not_count(hub: Sandbox, home: Path) -> None:
    """Status reports that no worker sends for this account, although a worker is alive."""
    ours, theirs = shell(home, hub.url, KEY_A), shell(home, hub.url, KEY_B)
    worker = start_worker(ours)
    wait_until(lambda: status(ours)["worker"]["alive"])
    train(theirs)

    shown = status(theirs)
    end(worker)

    assert not shown["healthy"]
    assert "no worker with their address and key is running" in shown["attention"][0]["what"]


def test_an_identifier_with_a_key_keeps_the_stored_one(hub: Sandbox, home: Path) -> None:
    environ = shell(home, hub.url, None)
    hubqueue(environ, "login", "hub", stdin=KEY_A)
    train(environ)
    code = f"import hubqueue; hubqueue.start_run('{'b' * 42}_{'m' * 20}', worker='none', strict=True)"
    assert python(code, environ).wait(60) == 0

    assert hubqueue(environ, "drain", "--timeout", "30").returncode in (0, 3)

    assert len(hub.models) == 1
    assert [row["obstacle"] for row in status(environ)["destinations"] if row["waiting"]] in ([], [None])


def test_a_late_response_of_the_old_address_is_ignored(home: Path, hub: Sandbox, other: Sandbox) -> None:
    here, there = shell(home, hub.url, KEY_A), shell(home, other.url, KEY_A)
    train(here)
    with open_outbox(home, environ=here) as outbox:
        (row,) = [each for each in outbox.addresses.all() if each.account and each.url == hub.url]
        lease = outbox.claims.claim(row.name, {Kind.REGISTRATION: ZERO}, TERMS)
        assert lease is not None

        assert hubqueue(there, "readdress", row.name).returncode == 0

        with pytest.raises(LeaseLost):
            outbox.settlement.ack(lease, started_at=None, remote=Remote(id="model-of-the-old-hub"))
    assert hubqueue(there, "drain", "--timeout", "30").returncode == 0
    assert (len(hub.models), len(other.models)) == (0, 1)


def test_a_run_whose_key_could_not_be_read_is_sent_with_no_other(hub: Sandbox, home: Path) -> None:
    environ = shell(home, hub.url, None)
    hubqueue(environ, "login", "hub", stdin=KEY_A)
    kept = (home / "credentials.toml").read_bytes()
    (home / "credentials.toml").write_text("not TOML at all [")
    with Relay(hub.url) as relay:
        train(shell(home, relay.url, None))
        assert hubqueue(shell(home, relay.url, KEY_B), "drain", "--timeout", "20").returncode == 3
        assert relay.keys == []

        (home / "credentials.toml").write_bytes(kept.replace(hub.url.encode(), relay.url.encode()))
        assert hubqueue(shell(home, relay.url, None), "drain", "--timeout", "30").returncode == 0
        assert {key for _, key in relay.keys} == {KEY_A}


@pytest.mark.parametrize("output", ["/dev/full", "closed"])
def test_a_stderr_that_cannot_be_written_costs_no_run(home: Path, output: str) -> None:
    code = TRAIN.replace("worker=sys.argv[1], strict=True", 'worker="none"').replace(
        "float(sys.argv[2])", "0"
    )
    end_of = "2>/dev/full" if output == "/dev/full" else "2>&-"
    command = f'exec "$0" -c "$1" {end_of}'

    done = subprocess.run(
        ["bash", "-c", command, sys.executable, code],
        env=shell(home, "http://127.0.0.1:9", KEY_A),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0
    assert done.stdout.split()[0] != "None"
    with open_outbox(home, environ={}) as outbox:
        assert outbox.stats.totals()["pending"] == 2


def spoil_credentials(home: Path) -> None:
    path = home / "credentials.toml"
    path.write_text("[hub\n")
    path.chmod(0o600)


def test_readdress_with_keys_that_cannot_be_read_changes_nothing(hub: Sandbox, home: Path) -> None:
    train(shell(home, hub.url, KEY_A))
    keyless = shell(home, hub.url, None)
    spoil_credentials(home)
    before = [(run["address"], run["held"]) for run in status(keyless)["runs"]]

    refused = hubqueue(keyless, "readdress", "hub")
    drained = hubqueue(keyless, "drain", "--timeout", "20")

    assert (refused.returncode, refused.stdout) == (2, ""), refused.stdout
    assert f"error: {home / 'credentials.toml'} is not valid TOML" in refused.stderr
    assert "hint: remove it and store the keys again" in refused.stderr
    assert (drained.returncode, "not sent: " in drained.stderr) == (3, True)
    assert f"{home / 'credentials.toml'} is not valid TOML" in drained.stderr
    assert [(run["address"], run["held"]) for run in status(keyless)["runs"]] == before


def test_a_run_of_the_command_line_goes_nowhere_by_chance(home: Path) -> None:
    environ = environ_of(home)
    for name in ("HUB_API_KEY", "ULTRALYTICS_HUB_API", "HUBQUEUE_DEFAULT_DESTINATION"):
        environ.pop(name, None)
    assert hubqueue(environ, "login", "hub", stdin=KEY_A).returncode == 0
    spoil_credentials(home)

    refused = hubqueue(environ, "enqueue", "run", "yolov8n.pt")
    named = hubqueue(environ, "enqueue", "run", "yolov8n.pt", "--to", "hub")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not valid TOML" in refused.stderr and "--to" in refused.stderr
    assert named.returncode == 0
    assert [run["destination"] for run in status(environ)["runs"]] == ["hub"]
