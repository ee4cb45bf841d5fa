"""P9: what a training passes on (arguments, results, errors, lines of output) keeps no key."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stage import environ_of, hubqueue, platform_environ, python

from hubqueue.domain.redact import link
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

# These do not look like keys: they are found by their name, or because the home knows them.
NAMED = "SECRETZZZ"
KNOWN = "Vx3-qL8w_Tn5bZk2Jr7"
STORED = "Gh4+uE9p=Cs6mAd1Yf0"

_TRAINING = """
import json, logging, sys, threading
logging.basicConfig(level=logging.DEBUG)
import hubqueue
named, known, stored = json.load(sys.stdin)
args = {"api_key": named, "nested": {"HF_TOKEN": named, "deep": [{"hubSecret": named}]}, "epochs": 3,
        "note": f"with {known} in it", "url": "https://x.invalid/d?password=" + named}
run = hubqueue.start_run("yolo26n.pt", args=args, worker=sys.argv[1], strict=True)
run.log_metrics({"loss": 1, f"loss/api_key={named}": 2, known: 3, stored[:-1]: 4}, epoch=0)
run.log_console(f"the key is {known}!\\n{stored[:10]}", lines=2)
run.log_console(f"{stored[10:]} and api_key={named}")
print(run, vars(run))
left = run.finish(timeout=float(sys.argv[2]), status=sys.argv[3], error=f"{known[1:]} was refused, token={named}",
    results={"apiKey": named, "metrics": {"token_accuracy": 0.5}, "classNames": ["cat"], "note": stored})
print(left)
"""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "platform") as sandbox:
        yield sandbox


def _everything(folder: Path) -> str:
    """The content of every file of a folder, except the credentials."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "credentials.toml"]
    return "".join(path.read_bytes().decode("utf-8", "replace") for path in files)


@pytest.mark.parametrize("status", ["finished", "failed"])
@pytest.mark.parametrize("worker", ["none", "thread"])
def test_no_key_that_a_training_hands_over_is_kept_or_sent(
    platform: Sandbox, home: Path, worker: str, status: str
) -> None:
    environ = platform_environ(home, platform.url, HUBQUEUE_KEY_OTHER=KNOWN)
    assert hubqueue(environ, "login", "platform", stdin=STORED).returncode == 0
    process = python(_TRAINING.replace("json.load(sys.stdin)", "json.loads(sys.argv[4])"), environ,
                     worker, "4", status, json.dumps([NAMED, KNOWN, STORED]))  # fmt: skip

    output, _ = process.communicate(timeout=90)

    assert process.returncode == 0, output
    shown = [hubqueue(environ, *words.split()) for words in ("entries --json", "show 1")]
    text = output + _everything(home) + "".join(each.stdout + each.stderr for each in shown)
    text += _everything(platform.data)
    for secret in (NAMED, KNOWN, STORED, KNOWN[1:], STORED[:-1], STORED[:10], STORED[10:]):
        assert secret not in text
    assert output.count("WARNING:hubqueue:masked, because they look like keys") == 1
    assert "nested.HF_TOKEN" in output
    for kept in (
        '"epochs": "3"',
        "token_accuracy" if status == "finished" else "was refused",
        "the key is ***!",
    ):
        assert kept in text or kept.replace('"', '\\"') in text


@pytest.mark.parametrize("destination", ["hub", "platform"])
def test_an_argument_of_the_command_line_is_masked_before_it_is_saved(home: Path, destination: str) -> None:
    environ = environ_of(home, "http://127.0.0.1:9", ULTRALYTICS_PLATFORM_URL="http://127.0.0.1:9")
    pairs = (
        "--arg",
        f"api_key={NAMED}",
        "--arg",
        f"data=https://x.invalid/d?token={NAMED}",
        "--arg",
        "epochs=7",
    )

    done = hubqueue(environ, "enqueue", "run", "yolo26n.pt", "--to", destination, *pairs)

    shown = hubqueue(environ, "show", "1")
    assert done.returncode == 0, done.stderr
    assert "api_key" in done.stderr
    assert NAMED not in done.stdout + done.stderr + shown.stdout + _everything(home)
    with closing(sqlite3.connect(home / "outbox.db")) as connection:
        ((payload,),) = connection.execute("SELECT payload FROM entries").fetchall()
    assert "7" in payload
    assert "***" in payload


EVIL = "\x1b]0;owned\x07\x9b2J\u202e"


def test_texts_of_a_shared_database_are_shown_without_escape_sequences(home: Path) -> None:
    environ = environ_of(home, "http://127.0.0.1:9")
    run = hubqueue(environ, "enqueue", "run", "yolo26n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
    with closing(sqlite3.connect(home / "outbox.db")) as connection:
        connection.execute(
            "UPDATE runs SET model = ?, url = ?, held = ?", (EVIL, "javascript:alert(1)", EVIL)
        )
        connection.execute("UPDATE destinations SET url = ?, held = ?", (f"http://x/{EVIL}", EVIL))
        connection.execute("UPDATE lanes SET last_error = ?", (EVIL,))
        connection.execute(
            "UPDATE entries SET key = ?, reason = ?, payload = ?", (EVIL, EVIL, json.dumps(EVIL))
        )
        connection.execute(
            "INSERT INTO attempts (lane_id, token, worker, entries, first_key, last_key, size, claimed_at, outcome, reason)"
            " SELECT id, 1, ?, 1, ?, ?, 5, 1, ?, ? FROM lanes",
            (EVIL,) * 5,
        )
        connection.execute(
            "INSERT INTO workers VALUES (?, 1, ?, ?, 1, 1)",
            (EVIL, EVIL, EVIL),
        )
        connection.commit()

    for words in (
        "status",
        "status --json",
        "runs --all",
        "runs --json",
        "entries",
        "entries --json",
        "show 1",
        "log",
    ):
        shown = hubqueue(environ, *words.split())
        output = shown.stdout + shown.stderr
        assert not set(output) & set("\x1b\x07\x9b\u202e"), words
        assert "javascript:" not in output, words
        assert "Traceback" not in output, words


def test_a_shown_link_is_http_or_https() -> None:
    assert link("https://hub.example.org/models/a%20b") == "https://hub.example.org/models/a%20b"
    assert link("http://127.0.0.1:8080") == "http://127.0.0.1:8080"
    page = "https://mlflow.example.org/#/experiments/12/runs/0af1"
    assert link(page) == page
    for bad in (None, "", "javascript:alert(1)", "data:text/html,x", "https://u:p@h/x", "https://h/x y", "https://h/x?k=1",
                "https://h/#k=1", "https://h/#/runs?k=1", "https://h/#/a#/b", "https://h#/a",
                "https://h/<script>", 'https://h/"', "https://h\\@x/", "https:///x", "file:///etc/passwd", "https://h/\x1b"):  # fmt: skip
        assert link(bad) is None


@pytest.mark.parametrize("key", ["k", "a", "model"])
def test_a_short_key_is_refused_with_a_clear_reason(hub: Sandbox, home: Path, key: str) -> None:
    """It could not be masked: its letters occur in every id."""
    environ = environ_of(home, hub.url, HUB_API_KEY=key)
    hubqueue(environ, "enqueue", "run", "yolo26n.pt")

    drained = hubqueue(environ, "drain", "--timeout", "20")

    assert drained.returncode == 3
    assert "the key for hub has fewer than 8 characters" in drained.stderr
    assert hub.requests == []
