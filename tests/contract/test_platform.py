"""The Platform transport over real sockets: the order of a run, the three steps of a checkpoint, starts, secrets."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import template
from peer import Peer, answer
from platform_stage import Stage, staged
from sqlalchemy import select
from stage import PATIENCE, platform_environ, totals

from hubqueue.domain.budget import Allowance
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.database.schema import budgets
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock

WEIGHTS = b"weights " * 40_000


@pytest.fixture
def at(hub: Sandbox, tmp_path: Path, clock: FakeClock) -> Iterator[Stage]:
    with staged(hub, tmp_path, clock) as stage:
        stage.start()
        yield stage


# --- a whole run


def test_a_run_arrives_whole_and_in_order(at: Stage) -> None:
    at.log(0, 1, 2)
    at.save(WEIGHTS, 2, final=True)
    at.end()
    at.drain()

    assert at.events("training_started", "epoch_end", "training_complete") == [
        "training_started",
        "epoch 0",
        "epoch 1",
        "epoch 2",
        "training_complete",
    ]
    assert at.contents() == [WEIGHTS]
    data = at.run.events[-1].data
    assert data["results"] == {
        "metrics": {"map": 0.5},
        "modelPath": at.promoted[0].object_path,
        "modelSize": len(WEIGHTS),
    }
    assert data["runId"] == at.run.run_id
    assert (at.run.project, at.run.name, at.run.state) == ("coco", "exp-1", "complete")
    assert at.outbox.stats.run(at.run_id)["url"] == f"{at.hub.url}/runs/{at.run.model_id}"  # type: ignore[index]


def test_an_end_waits_for_everything_before_it(at: Stage) -> None:
    at.hub.fail("metrics:503:epoch=1:times=4")
    at.log(0, 1, 2)
    at.end()
    at.drain()

    assert at.events()[-1] == "training_complete"
    assert sorted(at.events("epoch_end")) == ["epoch 0", "epoch 1", "epoch 2"]


def test_heartbeats_carry_the_load_of_the_machine(at: Stage) -> None:
    at.step(2)

    found = {each.event: each.data for each in at.run.events}
    assert found["training_progress"] == {"runId": 1}
    assert found["system_metrics"]["disk"][0]["mount"] == "/"


def test_a_cancellation_at_the_hub_reaches_the_run(at: Stage) -> None:
    at.step()
    at.hub.cancel(at.run.model_id)
    at.log(0)
    at.step()

    assert at.outbox.stats.run(at.run_id)["cancelled"]  # type: ignore[index]
    assert totals(at.outbox) == {"enqueued": 2, "delivered": 2}


def test_a_key_that_is_refused_holds_the_destination(tmp_path: Path, clock: FakeClock) -> None:
    with Sandbox(tmp_path / "hub", keys=("another",)) as hub, staged(hub, tmp_path, clock) as at:
        at.start()
        at.log(0)
        at.step()
        assert len(hub.requests) == 1
        at.step(2)  # 1000 s between them: each is a probe

        assert totals(at.outbox) == {"enqueued": 2, "pending": 2}
        assert len(hub.requests) == 3
        assert "the key was refused" in next(
            filter(None, (row["held"] for row in at.outbox.stats.destinations()))
        )


def test_an_altered_checkpoint_is_never_stored(at: Stage) -> None:
    at.save(os.urandom(3_000_000), 0, final=True)
    (snapshot,) = at.outbox.spool.path.glob("[!.]*")
    with snapshot.open("r+b") as file:
        (found,) = file.read(1)
        file.seek(0)
        file.write(bytes([found ^ 1]))

    at.drain()

    assert totals(at.outbox)["dead"] == 1
    assert any("not what was enqueued" in reason for reason in at.reasons())
    assert [each.size for each in at.run.uploads] == [None]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        # All but checkpoints are events: the same code sends them and reads their responses.
        pytest.param(kind, fault, marks=() if kind == "ckpt" or fault in usual else pytest.mark.slow)
        for kind, usual in {
            "registration": ("html", "204", "cut-body", "lost-ack"),
            "metrics": ("redirect", "empty", "null", "reset", "gzip"),
            "completion": (),
            "ckpt": (),
        }.items()
        for fault in ("html", "redirect", "empty", "null", "204", "cut-body", "reset", "lost-ack", "gzip")
    ],
)
def test_an_invalid_receipt_is_no_delivery(at: Stage, kind: str, fault: str) -> None:
    at.hub.fail(f"{kind}:{fault}:times=1")
    at.log(0)
    at.save(WEIGHTS, final=True)
    at.end()
    at.drain()

    assert sorted(at.events("training_started", "epoch_end", "training_complete")) == [
        "epoch 0",
        "training_complete",
        "training_started",
    ]
    assert at.contents() == [WEIGHTS]
    assert any(each.startswith("retry: ") for each in at.reasons())


# --- a checkpoint


def test_the_next_attempt_only_announces_stored_bytes(at: Stage) -> None:
    at.hub.fail("ckpt:503:event=checkpoint_saved:times=2")
    at.save(WEIGHTS, final=True)
    at.drain()

    assert [each.status for each in at.hub.requests if each.method == "PUT"] == [200]
    assert at.contents() == [WEIGHTS]


def test_stored_bytes_that_disappear_are_sent_again(at: Stage) -> None:
    at.hub.fail("ckpt:503:event=checkpoint_saved:times=1")
    at.hub.fail("ckpt:409:event=checkpoint_saved:times=1")
    at.save(WEIGHTS, final=True)
    at.drain()

    assert [each.status for each in at.hub.requests if each.method == "PUT"] == [200, 200]
    assert at.contents() == [WEIGHTS]


def test_a_refused_upload_url_is_followed_by_a_new_one(at: Stage) -> None:
    at.hub.fail("ckpt:403:path=/storage/:times=2")
    at.save(WEIGHTS, final=True)
    at.drain()

    assert [each.status for each in at.hub.requests if each.method == "PUT"] == [403, 403, 200]
    assert len(at.run.uploads) == 3
    assert at.contents() == [WEIGHTS]


def test_bytes_of_an_earlier_start_are_not_announced_for_this_one(at: Stage) -> None:
    at.step()
    at.hub.fail("ckpt:503:event=checkpoint_saved:times=1")
    at.save(WEIGHTS, final=True)
    at.step()
    at.start(resume=at.run_id)
    at.drain()

    (record,) = at.promoted
    assert record.run_id == at.run.run_id == 2


def test_the_storage_receives_no_key_and_its_url_appears_nowhere(at: Stage, tmp_path: Path) -> None:
    for fault in ("reset", "403", "503", "html", "cut-body", "500:store=yes"):
        at.hub.fail(f"ckpt:{fault}:path=/storage/:times=1")
    at.save(WEIGHTS, final=True)
    at.drain()

    tokens = [each.token.encode() for each in at.run.uploads]
    assert len(tokens) > 4
    assert not any(each.with_key for each in at.run.uploads)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    shown = repr([at.facts, at.reasons()]).encode()
    assert not any(token in kept + shown for token in tokens)
    assert b"signature=" not in kept + shown


def elsewhere(url: str) -> bytes:
    return answer(
        json.dumps(
            {"received": True, "modelId": "model-1", "runId": 1, "uploadUrl": url, "gcsPath": "gs://a/b.pt"}
        ).encode()
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "https://evil.example.org/put?signature=abcdefgh",
            "checkpoints to evil.example.org, which is not allowed",
        ),
        (
            "http://storage.googleapis.com/put?signature=abcdefgh",
            "port 80 of storage.googleapis.com, which is not allowed",
        ),
        (
            "http://storage.googleapis.com:443/put?signature=abcdefgh",
            "checkpoints to storage.googleapis.com without encryption",
        ),
        (
            "https://storage.googleapis.com:8443/put?signature=abcdefgh",
            'add "storage.googleapis.com:8443" to destinations.platform.upload_hosts',
        ),
        ("http://127.0.0.1:9/put?signature=abcdefgh", "port 9 of 127.0.0.1, which is not allowed"),
        ("https://127.0.0.1/put?signature=abcdefgh", "port 443 of 127.0.0.1, which is not allowed"),
        ("https://user:pw@storage.googleapis.com/x", "invalid upload URL"),
        ("https://storage.googleapis.com/a/../b?signature=abcdefgh", "invalid upload URL"),
        pytest.param(
            "https://storage.googleapis.com/a/%2e%2E/b?signature=abcdefgh",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://storage.googleapis.com/a/%2e./b?signature=abcdefgh",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://storage.googleapis.com/a\\..\\b?signature=abcdefgh",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://storage.googleapis.com/a%5Cb?signature=abcdefgh",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://storage.googleapis.com//b?signature=abcdefgh",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://storage.googleapis.com/b?signature=abcdefgh#x",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "https://storage.googleapis.com:0/b?signature=abcdefgh",
            "invalid upload URL",
            marks=pytest.mark.slow,
        ),
        pytest.param("https:///b?signature=abcdefgh", "invalid upload URL", marks=pytest.mark.slow),
        ("file:///etc/passwd", "invalid upload URL"),
        ("https://[::1", "invalid upload URL"),
    ],
)
def test_checkpoints_go_only_where_the_configuration_allows(
    tmp_path: Path, clock: FakeClock, url: str, reason: str
) -> None:
    def act(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(elsewhere(url))

    with Peer(act) as peer, staged(peer.url, tmp_path, clock) as at:
        at.start()
        at.save(WEIGHTS, final=True)
        at.step(2)

        assert any(reason in each for each in at.reasons())
        assert "signature" not in repr(at.reasons())
        assert totals(at.outbox)["pending"] == 1


def test_an_upload_host_is_used_at_the_configured_port(tmp_path: Path, clock: FakeClock) -> None:
    with Peer(lambda connection, _request: connection.sendall(answer())) as storage:
        root = storage.url.replace("127.0.0.1", "localhost")

        def act(connection: socket.socket, _request: bytes) -> None:
            connection.sendall(elsewhere(f"{root}/put?signature=abcdefgh"))

        host = {"HUBQUEUE_DESTINATIONS__PLATFORM__UPLOAD_HOSTS": root.removeprefix("http://")}
        with Peer(act) as peer, staged(peer.url, tmp_path, clock, **host) as at:
            at.start()
            at.save(WEIGHTS, final=True)
            at.step(2)

        assert any(b"PUT /put?signature=abcdefgh" in request for request in storage.requests)


# --- what a row keeps of a response


BAD_NAMES = ("gs://a/b?X-Goog-Signature=abcdefgh", "x/KEY-OF-the-test", "https://user:qzzq@hub.example.org/m")


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        # Each field, and each kind of credential, at least once; all pairs are slow.
        pytest.param(field, bad, marks=() if (place + kind) % 3 == 0 else pytest.mark.slow)
        for place, field in enumerate(["modelId", "modelUrl", "runId", "gcsPath", "uploadPath"])
        for kind, bad in enumerate(BAD_NAMES)
    ],
)
def test_no_possible_credential_reaches_a_row(tmp_path: Path, clock: FakeClock, field: str, bad: str) -> None:
    def act(connection: socket.socket, _request: bytes) -> None:
        url = f"{peer.url}/put?signature=abcdefgh"
        good = {"received": True, "modelId": "model-1", "modelUrl": "https://hub.example.org/m", "runId": 1}
        target = {"uploadUrl": url, "gcsPath": "gs://a/b.pt", "uploadPath": "b.pt"}
        connection.sendall(answer(json.dumps({**good, **target, field: bad}).encode()))

    with Peer(act) as peer, staged(peer.url, tmp_path, clock) as at:
        at.start()
        at.save(WEIGHTS, final=True)
        at.step(3)
        files = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())

    assert bad.encode() not in files
    assert any(b"training_started" in request for request in peer.requests)


# --- starts


def test_a_run_that_continues_is_a_new_start_of_its_model(at: Stage) -> None:
    at.log(0)
    at.end(RunState.FAILED)
    at.drain()
    at.start(resume=at.run_id)
    at.log(1)
    at.end()
    at.drain()

    assert at.events() == [
        "training_started",
        "epoch 0",
        "training_failed",
        "training_started",
        "epoch 1",
        "training_complete",
    ]
    assert at.run.run_ids == [1, 2]


def test_an_unsent_end_is_not_sent_once_the_run_continues(at: Stage) -> None:
    at.log(0)
    at.end(RunState.FAILED)
    at.start(resume=at.run_id)
    at.log(1)
    at.drain()

    assert at.events() == ["training_started", "epoch 0", "epoch 1"]


def test_a_model_from_elsewhere_gets_a_new_start(at: Stage) -> None:
    at.drain()
    first = at.run.model_id
    at.start(model=first)
    at.log(7)
    at.drain()

    assert at.run.run_ids == [1, 2]
    assert at.events("epoch_end") == ["epoch 7"]


@pytest.mark.parametrize("why", ["unknown", "ended"])
def test_a_deleted_or_ended_model_is_followed_by_a_new_one(at: Stage, why: str) -> None:
    at.end()
    at.drain()
    (first,) = at.hub.runs
    at.start(model="f" * 24 if why == "unknown" else first)
    at.log(0)
    at.drain()

    assert len(at.hub.runs) == 2
    second = at.hub.run(at.hub.runs[-1])
    assert [each.event for each in second.events if each.event in ("training_started", "epoch_end")] == [
        "training_started",
        "epoch_end",
    ]


@pytest.mark.parametrize("losses", [1, pytest.param(2, marks=pytest.mark.slow), 3, 5])
@pytest.mark.parametrize("honours", [True, False])
def test_lost_responses_to_a_start_make_at_most_one_twin(
    tmp_path: Path, clock: FakeClock, losses: int, honours: bool
) -> None:
    with Sandbox(tmp_path / "hub", honour_idempotency=honours) as hub, staged(hub, tmp_path, clock) as at:
        hub.fail(f"lost-ack:event=training_started:times={losses}")
        at.start()
        at.log(0, 1)
        at.drain()

        # A hub that knows the key of a repeated request has one model; at another one there are never more than
        # three, however often the response was lost, and all epochs are in one of them.
        assert len(hub.runs) <= (2 if honours else 3)
        assert losses > 1 or len(hub.runs) == (1 if honours else 2)
        (full,) = [each for each in map(hub.run, hub.runs) if len(each.events) > 1]
        assert [each.data["epoch"] for each in full.events if each.event == "epoch_end"] == [0, 1]


def test_a_start_that_did_not_arrive_is_repeated_unchanged(at: Stage) -> None:
    at.hub.fail("registration:502:times=4")
    at.log(0)
    at.drain()

    assert at.run.name == "exp-1"


def test_a_checkpoint_of_a_start_that_was_replaced_is_dead_with_its_reason(
    at: Stage, tmp_path: Path, clock: FakeClock
) -> None:
    at.step()
    at.hub.fail("ckpt:503:event=checkpoint_saved:times=1")
    at.save(WEIGHTS, final=True)
    at.step()
    with staged(at.hub, tmp_path / "elsewhere", clock) as other:
        other.start(model=at.run.model_id)
        other.drain()
    at.drain()

    assert totals(at.outbox)["dead"] == 1
    assert "stale_instance" in at.reasons()[-1] + at.reasons()[-2]
    assert at.contents() == []


# --- the budget


def test_a_long_backlog_drains_without_one_refusal(tmp_path: Path) -> None:
    from stage import hubqueue, python

    with Sandbox(tmp_path / "hub", requests_per_minute=1200, uploads_per_minute=600) as hub:
        quick = {"METRICS": "0", "CKPT": "0"}
        environ = platform_environ(
            template.lay(tmp_path / "home"),
            hub.url,
            **{f"HUBQUEUE_RATE_LIMITS__{name}": value for name, value in quick.items()},
            HUBQUEUE_DESTINATIONS__PLATFORM__REQUESTS_PER_MINUTE="1200",
            HUBQUEUE_DESTINATIONS__PLATFORM__UPLOADS_PER_MINUTE="600",
        )
        code = """
import hubqueue
for each in range(2):
    run = hubqueue.start_run("yolo26n.pt", args={"project": "p", "name": f"run-{each}"}, worker="none", strict=True)
    for epoch in range(80):
        run.log_metrics({"loss": 1.0}, epoch=epoch)
    run.finish(timeout=0)
"""
        python(code, environ).communicate(timeout=60)

        assert hubqueue(environ, "drain", "--timeout", "90").returncode == 0
        assert 429 not in [each.status for each in hub.requests]
        assert [hub.run(each).state for each in hub.runs] == ["complete", "complete"]
        for run in map(hub.run, hub.runs):
            assert [each.data["epoch"] for each in run.events if each.event == "epoch_end"] == list(range(80))


def test_an_empty_budget_makes_everything_wait_and_the_status_shows_until_when(
    hub: Sandbox, tmp_path: Path, clock: FakeClock
) -> None:
    few = {"HUBQUEUE_DESTINATIONS__PLATFORM__REQUESTS_PER_MINUTE": "10"}
    with staged(hub, tmp_path, clock, **few) as at:
        at.start()
        at.log(0, 1)
        for _ in range(5):
            at.worker.step()
            assert at.worker.wait_free(PATIENCE)

        assert len(hub.requests) == 1
        due = at.outbox.stats.next_due("platform", [Kind.METRICS])
        assert due is not None
        assert due > clock.wall()


def test_a_claim_takes_the_requests_that_the_destination_declares(at: Stage) -> None:
    at.step(2)
    at.save(WEIGHTS)

    at.worker.step()  # a heartbeat of two requests, and a checkpoint of two
    assert at.worker.wait_free(PATIENCE)

    allowed = Allowance(at.outbox.config.destination("platform").requests_per_minute)
    with at.outbox.database.read() as connection:
        free_at = connection.scalar(select(budgets.c.free_at).where(budgets.c.name == "requests"))
    assert free_at - at.outbox.database.now() == pytest.approx(
        4 * allowed.interval - allowed.saved, abs=timedelta(microseconds=4)
    )
