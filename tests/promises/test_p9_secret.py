"""P9: keys are never in the outbox, the spool, logs, status, exceptions, arguments or another host's request."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import ROOT, end, environ_of, hubqueue, log, new_run, python, start_worker, wait_until

from hubqueue.destinations.hub.registration import registration_draft
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

CANARY = "c0ffee" * 7  # 42 hexadecimal digits, as the keys of the HUB are
MODEL = "abcdefghij0123456789"


def files_with(folder: Path, needle: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]


@pytest.fixture
def other_host() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def test_a_canary_key_appears_only_in_the_requests(
    hub: Sandbox, other_host: Sandbox, home: Path, tmp_path: Path
) -> None:
    # One of its own: the list of processes is that of the whole machine, where others may run this test, too.
    canary = secrets.token_hex(21)
    environ = environ_of(home, hub.url, HUB_API_KEY=canary)
    (tmp_path / "last.pt").write_bytes(os.urandom(1000))
    for rule in ("401:times=1", "metrics:html:times=1", "metrics:500:times=1", "ckpt:reset:times=1"):
        hub.fail(rule)
    hub.fail(f"metrics:redirect:times=1:to={other_host.url}/v1/models/x")
    code = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
run.save_checkpoint(sys.argv[1], epoch=0)
print(run, vars(run))
"""
    out, _ = python(code, environ, str(tmp_path / "last.pt")).communicate(timeout=60)
    worker = start_worker(environ, "--verbose", fresh=True)
    command_lines = subprocess.run(
        ["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True
    ).stdout
    wait_until(lambda: "ON HOLD" in hubqueue(environ, "status").stdout)
    outputs = [out, hubqueue(environ, "status").stdout, hubqueue(environ, "resume", "hub").stdout]
    wait_until(lambda: '"pending": 0' in hubqueue(environ, "status", "--json").stdout)
    for arguments in (["status", "--json"], ["entries"], ["log", "--json"], ["check"], ["runs", "--all"]):
        shown = hubqueue(environ, *arguments)
        outputs += [shown.stdout, shown.stderr]
    outputs.append(end(worker))

    assert canary not in "".join(outputs)
    assert canary not in command_lines
    assert files_with(home, canary) == []
    assert files_with(hub.data, canary) == []
    assert other_host.requests == []
    assert any(request.status == 200 for request in hub.requests)


@pytest.mark.parametrize(
    "identifier", [f"{CANARY}_{MODEL}", f"https://hub.ultralytics.com/models/{MODEL}?api_key={CANARY}"]
)
def test_a_key_in_an_identifier_is_stored_only_in_the_credentials(
    hub: Sandbox, home: Path, tmp_path: Path, identifier: str
) -> None:
    code = "import hubqueue, sys; run = hubqueue.start_run(open(sys.argv[1]).read(), worker='none', strict=True); run.log_metrics({'loss': 1}, epoch=0); print(run, vars(run))"
    (tmp_path / "identifier").write_text(identifier)
    environ = environ_of(home, hub.url)
    del environ["HUB_API_KEY"]
    process = python(code, environ, str(tmp_path / "identifier"))
    out, _ = process.communicate(timeout=60)

    assert (process.returncode, CANARY in (out or "")) == (0, False)
    assert [path.name for path in files_with(home, CANARY)] == ["credentials.toml"]
    assert stat.S_IMODE((home / "credentials.toml").stat().st_mode) == 0o600
    shown = hubqueue(environ, "status")
    assert MODEL in shown.stdout
    assert CANARY not in shown.stdout


def test_login_reads_the_key_from_standard_input(home: Path) -> None:
    environ = environ_of(home)
    del environ["HUB_API_KEY"]

    shown = hubqueue(environ, "login", "hub", stdin=CANARY + "\n")

    assert shown.returncode == 0
    assert CANARY not in shown.stdout + shown.stderr
    with open_outbox(home, environ={}) as outbox:
        assert outbox.credentials.keys(outbox.config.destination("hub")) == (CANARY,)
    refused = hubqueue(environ, "login", "hub", CANARY)
    assert refused.returncode == 2


def test_everything_is_private_whatever_the_umask(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    code = f"""
import os, subprocess, sys
os.umask(0)
import hubqueue
run = hubqueue.start_run("yolov8n.pt", strict=True)
run.log_metrics({{"loss": 1}}, epoch=0)
run.save_checkpoint({str(tmp_path / "last.pt")!r}, epoch=0)
run.finish(timeout=60)
subprocess.run([sys.executable, "-m", "hubqueue", "login", "hub"], input=b"{CANARY}", check=True, cwd={str(ROOT)!r})
"""
    out, _ = python(code, environ_of(home, hub.url, HUBQUEUE_WORKER__IDLE_EXIT="1")).communicate(timeout=90)

    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (home, *home.rglob("*"))}
    wrong = {path: oct(mode) for path, mode in modes.items() if mode & 0o077}
    assert wrong == {}, out
    wait_until(lambda: '"alive": false' in hubqueue(environ_of(home), "status", "--json").stdout)


@pytest.mark.usefixtures("new_home")
@pytest.mark.parametrize("name", ["outbox.db", "spool"])
def test_links_are_not_followed(home: Path, tmp_path: Path, name: str) -> None:
    home.mkdir(mode=0o700)
    target = tmp_path / "elsewhere"
    if name == "spool":
        target.mkdir()
    (home / name).symlink_to(target)

    shown = hubqueue(environ_of(home), "enqueue", "run", "yolov8n.pt")

    assert shown.returncode == 1
    assert "error: " in shown.stderr
    assert not (tmp_path / "elsewhere").is_file()


def test_escape_sequences_are_removed_from_a_servers_text(home: Path, tmp_path: Path) -> None:
    from hubqueue.destinations.wire.message import Response
    from hubqueue.destinations.wire.outcomes import outcome_of_status
    from hubqueue.domain.outcome import Blocked, Scope

    evil = '{"message": "\\u001b[2J\\u202e wipe ' + CANARY + " " + "x" * 5000 + '"}'

    outcome = outcome_of_status(Response(401, {}, evil.encode()), host="hub", secrets=(CANARY,))

    assert isinstance(outcome, Blocked)
    assert outcome.scope is Scope.DESTINATION
    assert "\x1b" not in outcome.reason
    assert "\u202e" not in outcome.reason
    assert CANARY not in outcome.reason
    assert len(outcome.reason) < 300


def test_plain_http_to_another_machine_is_refused(home: Path) -> None:
    shown = hubqueue(environ_of(home, "http://hub.example"), "status")

    assert shown.returncode == 2
    assert "insecure" in shown.stderr


def test_a_registration_never_carries_a_key(home: Path) -> None:
    draft = registration_draft("yolov8n.pt", {"data": f"https://hub/data.zip?api_key={CANARY}"})

    assert CANARY not in draft.payload
    with open_outbox(home, environ={}) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0)
