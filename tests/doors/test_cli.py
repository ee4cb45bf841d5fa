"""The command line as a person sees it: complete outputs, exit codes, and one line and a hint for every error."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from stage import (
    command_process,
    end,
    environ_of,
    hubqueue,
    log,
    must_claim,
    new_run,
    start_worker,
    wait_until,
)

from hubqueue import __version__
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def environ(home: Path, hub: Sandbox) -> dict[str, str]:
    return environ_of(home, hub.url)


def test_the_version_is_printed(environ: dict[str, str]) -> None:
    assert hubqueue(environ, "--version").stdout == f"hubqueue {__version__}\n"


def test_a_shell_script_can_upload_a_whole_run(environ: dict[str, str], hub: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    run = hubqueue(
        environ, "enqueue", "run", "yolov8n.pt", "--arg", "epochs=2", "--arg", "data=coco8.yaml"
    ).stdout.strip()

    done = [
        hubqueue(
            environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1.5", "metrics/mAP50(B)=0.25"
        ),
        hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "1", stdin='{"loss": 0.5}'),
        hubqueue(
            environ,
            "enqueue",
            "checkpoint",
            "--run",
            run,
            "--epoch",
            "1",
            "--final",
            "--map",
            "0.3",
            str(tmp_path / "best.pt"),
        ),
        hubqueue(environ, "enqueue", "end", "--run", run),
        hubqueue(environ, "drain", "--timeout", "60"),
    ]

    assert [each.returncode for each in done] == [0] * 5, [each.stderr for each in done]
    (model,) = hub.models
    assert hub.metrics(model) == {0: {"loss": 1.5, "metrics/mAP50(B)": 0.25}, 1: {"loss": 0.5}}
    (record,) = hub.checkpoints(model)
    assert (record.type, record.map, record.epoch) == ("final", 0.3, 1)
    assert hub.model(model)["epochs"] == 2
    assert "finished" in hubqueue(environ, "runs").stdout


def test_the_status_shows_the_outage_the_worker_and_the_last_error(
    environ: dict[str, str], hub: Sandbox
) -> None:
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
    hub.fail("any:503")
    worker = start_worker(environ)
    seen: list[str] = []

    def is_retrying() -> bool:
        seen[:] = hubqueue(environ, "status").stdout.splitlines()
        # An attempt in flight has no next try.
        return any("1 retrying" in line and "next try" in line for line in seen[:1])

    wait_until(is_retrying)
    lines = list(seen)  # not read again: by then the next attempt may be in flight

    assert lines[0].startswith("waiting  hub responds 503 Service Unavailable for ")
    assert "2 uploads waiting (" in lines[0]
    assert "next try" in lines[0]
    assert any(line.startswith(f"worker  running, pid {worker.pid} on ") for line in lines)
    assert any(f"run {run}  yolov8n.pt  to hub  running  not registered yet" in line for line in lines)
    assert any("last error: 503 Service Unavailable" in line for line in lines)
    assert "\x1b" not in "\n".join(lines)
    end(worker)


def test_the_status_loads_what_it_shows_and_no_more(environ: dict[str, str]) -> None:
    """Guards its speed: imports take most of its time."""
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
    code = (
        "import atexit, sys; from hubqueue.__main__ import main; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); sys.argv[1:] = ['status']; main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )

    assert "2 uploads waiting" in done.stdout
    loaded = set(done.stderr.split())
    for foreign in (
        "requests",
        "urllib3",
        "apscheduler",
        "tqdm",
        "hubqueue.retrieval",
        "alembic",
        "sqlalchemy.orm",
        "sqlalchemy.ext.asyncio",
    ):
        assert foreign not in loaded
    assert not [name for name in loaded if name.startswith("sqlalchemy.dialects.postgresql")]
    own = {name.removeprefix("hubqueue.") for name in loaded if name.startswith("hubqueue.")}
    assert {"outbox.status", "outbox.stats", "cli.status"} <= own
    moves = {"claim", "enqueue", "settle", "registry", "picking"}
    assert own.isdisjoint({f"outbox.moves.{name}" for name in moves})
    packages = {"worker", "producer", "sandbox", "integrations", "destinations.wire"}
    assert own.isdisjoint(packages), own & packages
    assert own.isdisjoint(
        {f"cli.{name}" for name in ("demo", "drain", "enqueue", "repair", "sandbox", "worker")}
    )


def test_the_status_as_json_has_the_shape_of_the_manual(environ: dict[str, str]) -> None:
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")

    shown = json.loads(hubqueue(environ, "status", "--json").stdout)

    assert {"healthy", "outbox", "spool", "worker", "totals", "destinations", "runs"} <= set(shown)
    assert {"url", "backend", "version", "journal_mode", "synchronous", "bytes", "revision"} <= set(
        shown["outbox"]
    )
    assert {"path", "bytes", "max_bytes", "free_bytes"} <= set(shown["spool"])
    assert {"alive", "pid", "host", "started_at", "seen_at"} <= set(shown["worker"])
    counts = {"enqueued", "pending", "in_flight", "retrying", "delivered", "dead", "superseded", "cancelled"}
    assert counts <= set(shown["totals"])
    assert {"name", "type", "url", "held", "resumes_at"} <= set(shown["destinations"][0])
    run = shown["runs"][0]
    names = {
        "id",
        "destination",
        "remote_id",
        "url",
        "state",
        "last_heartbeat_at",
        "next_heartbeat_at",
        "lanes",
    }
    assert names <= set(run)
    lane = run["lanes"][0]
    more = {"kind", "bytes", "oldest_age_s", "next_send_at", "held", "attempts", "last_error"}
    assert (counts - {"enqueued"}) | more <= set(lane)


def test_dead_entries_are_shown_redriven_and_cancelled(home: Path) -> None:
    environ = environ_of(home)
    with open_outbox(home, environ={}) as outbox:
        run = new_run(outbox)
        (entry,) = log(outbox, run, 7)
        outbox.settlement.bury(must_claim(outbox), reason="400 Bad Request: no such metric", started_at=None)

    listed = hubqueue(environ, "entries", "--state", "dead")
    assert "no such metric" in listed.stdout
    assert "hubqueue redrive --all" in hubqueue(environ, "status").stdout
    assert json.loads(hubqueue(environ, "show", str(entry), "--json").stdout)["payload"] == {"loss": 1.0}
    assert hubqueue(environ, "redrive", str(entry)).stdout == "1 entry will be sent again\n"
    assert hubqueue(environ, "redrive", str(entry)).returncode == 1
    assert hubqueue(environ, "cancel", str(entry)).stdout == "1 entry cancelled\n"
    assert hubqueue(environ, "cancel", "--run", run).returncode == 1
    assert "1 cancelled" in hubqueue(environ, "status").stdout


def test_check_finds_every_problem_with_a_hint(home: Path) -> None:
    environ = environ_of(home, "http://127.0.0.1:9")
    del environ["HUB_API_KEY"]

    shown = hubqueue(environ, "check")

    assert shown.returncode == 1
    assert "no key for hub" in shown.stdout
    assert "hubqueue login hub" in shown.stdout
    assert "0 enqueued = 0 pending" in shown.stdout


def test_check_finds_nothing_when_nothing_is_wrong(environ: dict[str, str]) -> None:
    shown = hubqueue(environ, "check", "--json")

    assert shown.returncode == 0, shown.stdout
    assert all(finding["ok"] for finding in json.loads(shown.stdout))


def test_a_wrong_key_is_found_by_check(home: Path, tmp_path: Path) -> None:
    with Sandbox(tmp_path / "strict", keys=("right-key",)) as strict:
        shown = hubqueue(environ_of(home, strict.url, HUB_API_KEY="wrong-key"), "check")
        stored = hubqueue(
            environ_of(home, strict.url, HUB_API_KEY="wrong-key"), "login", "hub", stdin="right-key\n"
        )
        again = hubqueue(environ_of(home, strict.url, HUB_API_KEY=""), "check")

    assert (shown.returncode, "401" in shown.stdout) == (1, True)
    assert "HUB_API_KEY is also set and takes precedence" in stored.stderr
    assert again.returncode == 0, again.stdout


def test_an_empty_standard_input_is_no_key(home: Path) -> None:
    shown = hubqueue(environ_of(home), "login", "hub", stdin="")

    assert shown.returncode == 1
    assert shown.stderr.startswith("error: standard input has no key for hub (")
    assert "hint: send it on standard input: hubqueue login hub < key.txt" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "there is no command nonsense"),
        (["status", "--run", "none"], 2, "there is no run none"),
        (["show", "12345"], 2, "there is no entry 12345"),
        (["enqueue", "metrics", "--run", "none", "--epoch", "0", "a=1"], 2, "there is no run none"),
        (["enqueue", "run", "what is this"], 2, "error: "),
        (["redrive"], 2, "--all"),
        (["cancel"], 2, "--run"),
        (["resume", "hbu"], 2, "hub"),
        (["login", "hbu"], 2, "hub"),
        (["--config", "/nonexistent.toml", "status"], 2, "there is no configuration"),
        (["sandbox", "--fail", "metrcs:503"], 2, "metrics"),
    ],
)
def test_an_error_has_no_traceback_and_names_what_is_wrong(
    home: Path, arguments: list[str], code: int, words: str
) -> None:
    shown = hubqueue(environ_of(home), *arguments)

    assert shown.returncode == code, shown.stderr
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.usefixtures("new_home")
def test_all_problems_of_a_configuration_are_reported_at_once(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text('[rate_limits]\nmetric = 3\nckpt = "often"\n[spol]\nx = 1\n')

    shown = hubqueue(environ_of(home), "status")

    assert shown.returncode == 2
    assert shown.stderr.count("error: ") == 3
    assert "did you mean 'metrics'" in shown.stderr


def test_metrics_that_are_no_numbers_are_refused(home: Path) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()

    shown = hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=high")

    assert shown.returncode == 2
    assert "loss" in shown.stderr


@pytest.mark.parametrize("what", ["missing.pt", "."])
def test_a_checkpoint_that_cannot_be_read_is_reported(home: Path, tmp_path: Path, what: str) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()

    shown = hubqueue(environ, "enqueue", "checkpoint", "--run", run, "--epoch", "0", str(tmp_path / what))

    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert "hint: " in shown.stderr


def test_a_reader_that_closes_the_pipe_is_no_error(environ: dict[str, str], home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), *range(500))
    head = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert head.stdin is not None and head.stdout is not None

    command = ["entries", "--limit", "500"]
    shown = command_process(environ, *command, stdout=head.stdin.fileno(), stderr=subprocess.PIPE)
    head.stdin.close()
    _, errors = shown.communicate(timeout=60)

    with head, head.stdout:
        assert head.stdout.read().startswith("ENTRY")
    assert errors == ""


def test_a_drain_on_a_terminal_shows_its_progress(
    environ: dict[str, str], hub: Sandbox, tmp_path: Path
) -> None:
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hub.fail("ckpt:drip:seconds=0.02")  # long enough to be seen
    (tmp_path / "best.pt").write_bytes(bytes(20_000_000))
    hubqueue(
        environ, "enqueue", "checkpoint", "--run", run, "--epoch", "1", "--final", str(tmp_path / "best.pt")
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))

    process = command_process(environ, "drain", stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    output = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:
            break
        if not block:
            break
        output += block
    process.communicate(timeout=60)
    os.close(master)

    assert process.returncode == 0
    assert b"entries" in output
    assert b"ckpt" in output
    assert hub.checkpoints(hub.models[0])[0].size == 20_000_000


def test_colours_are_for_terminals_without_no_color(environ: dict[str, str]) -> None:
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")

    def on_terminal(variables: dict[str, str]) -> bytes:
        master, slave = pty.openpty()
        process = command_process(variables, "status", stdout=slave, stderr=slave)
        os.close(slave)
        process.wait(60)
        output = os.read(master, 65536)
        os.close(master)
        return output

    plain = {**environ, "NO_COLOR": "1"}
    coloured = {name: value for name, value in environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    assert b"\x1b[" not in on_terminal(plain)
    assert b"\x1b[" not in on_terminal({**coloured, "TERM": "dumb"})
    assert b"\x1b[" in on_terminal(coloured)


def test_a_worker_exits_when_idle(environ: dict[str, str], home: Path) -> None:
    worker = start_worker(environ, "--idle-exit", "0.5")

    _, output = worker.communicate(timeout=60)

    assert worker.returncode == 0
    assert "nothing to send for 0.5 s" in output


def test_the_sandbox_command_serves(home: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "hubqueue",
        "sandbox",
        "--port",
        "0",
        "--data",
        str(tmp_path / "kept"),
    ]
    process = subprocess.Popen(
        command, env=environ_of(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    url = next(word for word in line.replace(",", " ").split() if word.startswith("http"))
    environ = environ_of(home, url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()

    assert hubqueue(environ, "drain", "--timeout", "90").returncode == 0
    end(process)

    assert run
    assert process.returncode == 0
    assert list((tmp_path / "kept").rglob("*"))


def test_check_reports_a_changed_schema(home: Path) -> None:
    environ = environ_of(home, "http://127.0.0.1:9")
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")
    with open_outbox(home, environ={}) as outbox, outbox.database.write() as tx:
        tx.exec_driver_sql("CREATE TRIGGER spy AFTER INSERT ON entries BEGIN SELECT 1; END")

    checked = hubqueue(environ, "check", "--offline")

    assert checked.returncode == 1
    assert "trigger spy" in checked.stdout


def test_the_address_of_a_run_opens_it_on_the_page_of_the_sandbox(
    environ: dict[str, str], hub: Sandbox
) -> None:
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
    (run,) = json.loads(hubqueue(environ, "status", "--json").stdout)["runs"]

    with urllib.request.urlopen(run["url"], timeout=60) as page:
        opened, kind = page.url, page.headers["Content-Type"]

    assert opened == f"{hub.url}/#/runs/{hub.models[0]}"
    assert kind.startswith("text/html")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.url}/models/unknown", timeout=60)
