"""The http destination against the example server, over real sockets. Every exchange fits docs/http-protocol.yaml."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from http_stage import KEY, TOKEN, Server, Stage, http_environ, staged
from peer import Peer, answer
from protocol import Exchange, operation_of, operations
from stage import hubqueue, totals

import hubqueue as package
from hubqueue.config.registry import declaration
from hubqueue.destinations.base import DestinationUnavailable, NotThere, Reader
from hubqueue.testing import FakeClock

SIZE = 5_000_000
ODD = {
    "weights/rank 0.bin": b"0" * 3000,
    "weights/rank+1.bin": b"1" * 2_000_000,
    "100%/a#b?c=d&e.txt": b"odd",
    "größe~'(ü).bin": b"\xff" * 10,
    "empty": b"",
}


def weights(size: int = SIZE) -> bytes:
    return random.Random(7).randbytes(size)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "runs") as running:
        yield running


@pytest.fixture
def at(server: Server, tmp_path: Path, clock: FakeClock) -> Iterator[Stage]:
    with staged(server.url, tmp_path, clock) as stage:
        stage.start(lr=0.1, api_key="sk-1234567890abcdef1234567890")
        yield stage


def run_of(server: Server) -> Path:
    (found,) = server.folder.iterdir()
    return found


def jsons(server: Server, kind: str) -> list[dict[str, Any]]:
    return [json.loads(each.read_bytes()) for each in sorted(run_of(server).glob(f"{kind}/*.json"))]


def stored(server: Server) -> Mapping[str, bytes]:
    """The files that the one manifest names."""
    (manifest,) = jsons(server, "manifest")
    folder = run_of(server) / "files" / manifest["folder"]
    return {each["path"]: (folder / each["path"]).read_bytes() for each in manifest["files"]}


def puts(server: Server) -> list[Exchange]:
    return [each for each in server.exchanges if each.method == "PUT"]


def reader_of(at: Stage) -> Reader:
    target = at.outbox.config.destination("lab")
    read = declaration("http").read
    assert read is not None
    return read(target, lambda: at.outbox.credentials.keys(target))


# --- a whole run


def test_a_whole_training_arrives_and_can_be_read(at: Stage, server: Server) -> None:
    at.log(0, 1)
    at.save(weights(), 1)
    at.step(3)  # with heartbeats
    at.end()
    at.drain()

    assert totals(at.outbox) == {"enqueued": 5, "delivered": 5}
    run = json.loads((run_of(server) / "run.json").read_bytes())
    assert (run["id"], run["name"], run["state"]) == (at.run_id, f"resnet50-{at.run_id}", "finished")
    assert (run["model"], run["args"]["lr"], run["results"]) == ("resnet50.pt", 0.1, {"accuracy": 0.9})
    logged = [each for batch in jsons(server, "metrics") for each in batch["metrics"]]
    assert logged == [{"epoch": 0, "values": {"loss": 0.5}}, {"epoch": 1, "values": {"loss": 1.5}}]
    assert stored(server) == {"best.pt": weights()}
    (manifest,) = jsons(server, "manifest")
    assert (manifest["name"], manifest["epoch"], manifest["is_best"]) == ("epoch-0001", 1, True)

    reader = reader_of(at)
    (listed,) = reader.runs()
    assert (listed.name, listed.id, listed.model, listed.state) == (
        run["name"],
        at.run_id,
        "resnet50.pt",
        "finished",
    )
    (checkpoint,) = reader.checkpoints(listed.name)
    (file,) = checkpoint.files
    assert (checkpoint.epoch, checkpoint.is_latest, checkpoint.is_best, checkpoint.map) == (
        1,
        True,
        True,
        0.5,
    )
    assert reader.hashed(checkpoint, file) == file
    blocks = list(reader.blocks(checkpoint, file, start=123))
    assert (b"".join(blocks), max(map(len, blocks))) == (weights()[123:], 1 << 20)
    reader.close()
    assert {operation_of(each) for each in server.exchanges} == operations()


def test_no_secret_is_in_what_is_kept(at: Stage, server: Server) -> None:
    at.log(0)
    at.drain()

    kept = [*(at.folder / "home").rglob("*"), *server.folder.rglob("*")]
    for each in (TOKEN, KEY, "sk-123"):
        assert not [path for path in kept if path.is_file() and each.encode() in path.read_bytes()]


def test_a_folder_arrives_whole_whatever_its_files_are_called(at: Stage, server: Server) -> None:
    at.save(ODD, 3)
    at.drain()

    assert stored(server) == ODD
    (manifest,) = jsons(server, "manifest")
    assert manifest["is_folder"] is True
    assert [each.method for each in server.exchanges].index("PUT") < len(server.exchanges) - 1
    assert server.exchanges[-1].target.endswith("/manifest")
    reader = reader_of(at)
    (checkpoint,) = reader.checkpoints(at.run_id)
    read = {each.path: b"".join(reader.blocks(checkpoint, each)) for each in checkpoint.files}
    assert read == ODD
    reader.close()


def test_a_training_that_counts_steps_and_has_a_name(
    server: Server, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(server.url, tmp_path, clock) as at:
        for name, value in http_environ(at.folder / "home", server.url).items():
            monkeypatch.setenv(name, value)
        for name, content in ODD.items():
            (tmp_path / "saved" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "saved" / name).write_bytes(content)
        with package.start_run("resnet50.pt", name="first try", worker="none", strict=True) as run:
            run.log_metrics({"loss": 1.0}, epoch=2, step=120)
            run.save_checkpoint(tmp_path / "saved", step=120)
        at.drain()

    assert json.loads((run_of(server) / "run.json").read_bytes())["name"] == "first try"
    assert jsons(server, "metrics") == [
        {"metrics": [{"epoch": 2, "step": 120, "values": {"loss": 1.0, "epoch": 2}}]}
    ]
    (manifest,) = jsons(server, "manifest")
    assert (manifest["name"], manifest["step"], "epoch" in manifest) == ("step-00000120", 120, False)
    assert stored(server) == ODD


def test_a_person_can_cancel_the_training(at: Stage, server: Server) -> None:
    at.step()
    (run_of(server) / "cancelled").touch()
    at.log(0)
    at.drain()

    assert at.outbox.stats.run(at.run_id)["cancelled"]  # type: ignore[index]


def test_a_run_that_continues_runs_again_at_the_server(at: Stage, server: Server) -> None:
    at.end()
    at.drain()
    at.outbox.registry.start_run(destination="lab", model="resnet50.pt", kinds=(), resume=at.run_id)
    draft = declaration("http").registration(
        declaration("http").identify("resnet50.pt", at.outbox.config.destination("lab")), {}, continues=True
    )
    assert draft is not None
    at.outbox.entries.enqueue(at.run_id, draft)
    at.drain()

    assert json.loads((run_of(server) / "run.json").read_bytes())["state"] == "running"


# --- uploads that break


def test_a_broken_upload_continues_where_it_was(at: Stage, server: Server) -> None:
    at.step()
    server.recorder.cut_at = 3_000_000
    at.save(weights(), 1)
    at.drain()

    first, second = puts(server)
    start = int(second.headers["content-range"].partition("-")[0].removeprefix("bytes "))
    assert 2_000_000 < start < SIZE
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert (second.received, second.status) == (SIZE - start, 200)
    assert stored(server) == {"best.pt": weights()}


def test_files_that_have_arrived_are_not_sent_again(at: Stage, server: Server) -> None:
    files = {f"rank-{number}.bin": weights(1_500_000) for number in range(3)}
    at.step()
    at.save(files, 1)
    server.recorder.responses["POST manifest"] = [(503, {"message": "later"})]
    at.drain()

    assert len(puts(server)) == 3
    assert stored(server) == files


def test_a_file_that_has_changed_at_the_server_is_sent_again(at: Stage, server: Server) -> None:
    at.step()
    at.save(weights(), 1)
    server.recorder.responses["POST manifest"] = [(503, {"message": "later"})]
    at.step()
    (path,) = run_of(server).glob("files/*/best.pt")
    path.write_bytes(bytes(SIZE))
    at.drain()

    assert any("missing, or not as in the manifest and removed: ['best.pt']" in each for each in at.reasons())
    assert stored(server) == {"best.pt": weights()}


def test_a_repeat_after_a_lost_response_changes_nothing(at: Stage, server: Server) -> None:
    at.log(0)
    at.save({"a": b"1", "b": b"2"}, 0)
    at.end()
    for number in range(40):
        if not totals(at.outbox).get("pending"):
            break
        server.recorder.lost = number % 2
        at.step()

    assert totals(at.outbox)["delivered"] == 4
    assert [len(jsons(server, kind)) for kind in ("metrics", "manifest")] == [1, 1]
    assert stored(server) == {"a": b"1", "b": b"2"}


def test_an_altered_snapshot_never_becomes_a_checkpoint(at: Stage, server: Server) -> None:
    at.save(weights(), 0)
    (snapshot,) = at.outbox.spool.path.glob("[!.]*")
    with snapshot.open("r+b") as file:
        file.write(bytes(10))
    at.drain()

    assert totals(at.outbox)["dead"] == 1
    assert jsons(server, "manifest") == []


def test_another_checkpoint_of_an_epoch_leaves_the_first_one_alone(at: Stage, server: Server) -> None:
    at.save(b"first", 7)
    at.drain()
    server.recorder.responses["POST manifest"] = [(503, {"message": "later"})]
    at.save(b"second", 7)
    at.step()
    reader = reader_of(at)

    (before,) = reader.checkpoints(at.run_id)
    assert b"".join(reader.blocks(before, before.files[0])) == b"first"
    at.drain()
    first, after = reader.checkpoints(at.run_id)
    assert (first.files, after.name, after.is_latest) == (before.files, "epoch-0007.2", True)
    assert b"".join(reader.blocks(after, after.files[0])) == b"second"
    assert reader.hashed(before, before.files[0]) == before.files[0]
    reader.close()


# --- refusals


@pytest.mark.parametrize(
    ("status", "found", "outcome"),
    [
        (401, {"message": "wrong token"}, "held: the key was refused: 401 Unauthorized: wrong token"),
        (
            404,
            {"message": "no such run"},
            "held: 127.0.0.1 does not know this model or address (404 Not Found: no such run)",
        ),
        (
            412,
            {"message": "time"},
            "held: the clock of this machine is 0:00:0",
        ),
        (413, {"message": "too large"}, "dead: 413"),
        pytest.param(422, {"message": "no"}, "dead: 422", marks=pytest.mark.slow),
        pytest.param(409, {"message": "again"}, "retry: 409 Conflict: again", marks=pytest.mark.slow),
        (503, {"message": "later"}, "retry: 503 Service Unavailable: later"),
        (404, None, "retry: 127.0.0.1 responded 404 Not Found with an HTML page"),
        (200, None, "retry: 127.0.0.1 responded 200, but not like a hub"),
        pytest.param(
            200, {"ok": True}, "retry: 127.0.0.1 responded 200, but not like a hub", marks=pytest.mark.slow
        ),
        (200, {"received": "true"}, "retry: 127.0.0.1 responded 200, but not like a hub"),
    ],
)
def test_what_a_refusal_does(
    at: Stage, server: Server, status: int, found: dict[str, Any] | None, outcome: str
) -> None:
    at.step()
    server.recorder.responses["POST metrics"] = [(status, found)]
    at.log(0)
    at.step()

    (reason,) = [each for each in at.reasons() if not each.startswith("delivered")]
    assert reason.startswith(outcome), reason
    at.drain() if status not in (413, 422) else None


def test_a_large_file_learns_why_its_run_is_refused(at: Stage, server: Server) -> None:
    """The response to HEAD has no body, so the reason is that of the PUT."""
    at.step()
    (run_of(server) / "run.json").rename(server.folder / "run.json")
    at.save(weights(2_000_000), 0)
    at.step()

    assert "404 Not Found: there is no run" in at.reasons()[-1]
    assert at.reasons()[-1].startswith("held")


def test_a_wrong_clock_is_named_with_its_difference(tmp_path: Path, clock: FakeClock) -> None:
    refusal = answer(
        b'{"message": "time"}',
        status="412 Precondition Failed",
        headers="Date: Mon, 01 Jan 2001 00:00:00 GMT\r\n",
    )
    with (
        Peer(lambda connection, _: connection.sendall(refusal)) as peer,
        staged(peer.url, tmp_path, clock) as at,
    ):
        at.start()
        at.step()
        (held,) = filter(None, (row["held"] for row in at.outbox.stats.destinations()))

        assert held.startswith("the clock of this machine is ")
        assert held.endswith(" ahead of that of the server")


def test_check_asks_whether_token_and_signature_are_accepted(
    server: Server, tmp_path: Path, clock: FakeClock
) -> None:
    for wrong, reason in [
        ({}, None),
        ({"HUBQUEUE_KEY_LAB": "another-token"}, "the key was refused: 401 Unauthorized: wrong token"),
        (
            {"HUBQUEUE_SIGNING_KEY_LAB": "another-key"},
            "the key was refused: 401 Unauthorized: wrong signature",
        ),
    ]:
        with staged(server.url, tmp_path, clock, **wrong) as at:
            target = at.outbox.config.destination("lab")
            keys = partial(at.outbox.credentials.keys, target)
            transport = declaration("http").open(target, keys, at.outbox.spool.open)
            assert getattr(transport.check(), "reason", None) == reason
            transport.close()


def test_without_a_signature_only_the_token_is_needed(tmp_path: Path, clock: FakeClock) -> None:
    good = answer(b'{"received": true, "id": "run-1"}')
    settings = {"HUBQUEUE_DESTINATIONS__LAB__SIGN": "false", "HUBQUEUE_SIGNING_KEY_LAB": ""}
    with (
        Peer(lambda connection, _: connection.sendall(good)) as peer,
        staged(peer.url, tmp_path, clock, **settings) as at,
    ):
        at.start()
        at.drain()

        assert peer.requests  # the registration, and a heartbeat if the registration was quick
        for request in peer.requests:
            assert f"Authorization: Bearer {TOKEN}".encode() in request
            assert b"Hubqueue-Signature" not in request


# --- reading


def test_the_marks_of_checkpoints_are_those_of_the_newest(at: Stage, server: Server) -> None:
    for epoch in (1, 3, 2):
        at.save(b"%d" % epoch, epoch, final=epoch == 2)
        at.drain()
    reader = reader_of(at)

    found = reader.checkpoints(at.run_id)

    assert [each.epoch for each in found] == [1, 2, 3]
    assert [each.is_latest for each in found] == [
        False,
        False,
        True,
    ]  # a training does not resume from a final one
    assert [each.is_final for each in found] == [False, True, False]


def test_what_is_gone_or_damaged_is_seen(at: Stage, server: Server) -> None:
    at.save({"kept": b"1", "damaged": b"2", "gone": b"3"}, 0)
    at.drain()
    reader = reader_of(at)
    (checkpoint,) = reader.checkpoints(at.run_id)
    (folder,) = run_of(server).glob("files/*")
    (folder / "damaged").write_bytes(b"x")
    (folder / "gone").unlink()

    files = {each.path: each for each in checkpoint.files}

    assert reader.hashed(checkpoint, files["kept"]) == files["kept"]
    damaged = reader.hashed(checkpoint, files["damaged"])
    assert damaged is not None and damaged.sha256 != files["damaged"].sha256
    assert reader.hashed(checkpoint, files["gone"]) is None
    with pytest.raises(NotThere, match="has no whole epoch-0000/gone"):
        list(reader.blocks(checkpoint, files["gone"]))
    with pytest.raises(NotThere, match="lab has no run other"):
        reader.checkpoints("other")


def test_a_list_is_read_page_by_page(at: Stage, server: Server) -> None:
    run = {"name": "n", "model": "m", "state": "running"}
    server.recorder.responses["GET"] = [
        (200, {"runs": [{"id": "a", **run}], "next": "p 2"}),
        (200, {"runs": [{"id": "b", **run}]}),
    ]

    assert [each.id for each in reader_of(at).runs()] == ["a", "b"]


def test_a_reader_says_why_it_cannot_read(at: Stage, server: Server) -> None:
    reader = reader_of(at)
    for status, found, reason in [
        (401, {"message": "wrong token"}, "lab: the key was refused: 401 Unauthorized: wrong token"),
        (200, None, "lab: 127.0.0.1 responded 200, but not like a hub"),
        (502, None, "lab: 502 Bad Gateway"),
    ]:
        server.recorder.responses["GET"] = [(status, found)]
        with pytest.raises(DestinationUnavailable) as caught:
            list(reader.runs())
        assert str(caught.value).startswith(reason)
        assert caught.value.hint


# --- the command line


def test_login_asks_for_what_the_settings_need(home: Path) -> None:
    environ = {**os.environ, "HUBQUEUE_HOME": str(home), "HUBQUEUE_DESTINATIONS__LAB__TYPE": "http"}
    environ |= {"HUBQUEUE_DESTINATIONS__LAB__URL": "http://127.0.0.1:1"}

    both = hubqueue(environ, "login", "lab", stdin=f"{TOKEN}\n{KEY}\n")
    stored_both = (home / "credentials.toml").read_text()
    one = hubqueue(
        {**environ, "HUBQUEUE_DESTINATIONS__LAB__SIGN": "false"}, "login", "lab", stdin=f"{TOKEN}\n"
    )
    stored_one = (home / "credentials.toml").read_text()
    missing = hubqueue(environ, "check")

    assert (both.returncode, one.returncode) == (0, 0), both.stderr + one.stderr
    assert f'token = "{TOKEN}"\nsigning_key = "{KEY}"\n' in stored_both
    assert "signing_key" not in stored_one
    assert "no valid signing_key" in missing.stdout
