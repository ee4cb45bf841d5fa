"""The sandbox against the real ultralytics-platform client, set up as the training callback sets it up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from ultralytics_platform import APIError, Platform

from hubqueue.sandbox import Sandbox

KEY = "ul_0123456789abcdef0123456789abcdef01234567"
STARTED = {"trainArgs": {"model": "yolo26n.pt", "epochs": "3"}, "epochs": 3, "device": "cpu"}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(keys=(KEY,)) as sandbox:
        yield sandbox


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[Platform]:
    with connected(sandbox) as client:
        yield client


def connected(sandbox: Sandbox, *, key: str = KEY, retries: int = 0) -> Platform:
    return Platform(
        api_key=key,
        base_url=sandbox.url,
        max_retries=retries,
        retry_methods=("POST",),
        http_client=httpx.Client(follow_redirects=True, trust_env=False),
    )


def started(client: Platform, *, name: str = "train", **more: Any) -> dict[str, Any]:
    return dict(
        client.training.metrics(
            event="training_started", data=STARTED, project="bob/coco", name=name, timeout=20, **more
        )
    )


def epoch_end(client: Platform, run: dict[str, Any], epoch: int) -> dict[str, Any]:
    data = {"epoch": epoch, "metrics": {"train/box_loss": 1 / (epoch + 1), "lr": None}, "fitness": epoch / 10}
    return dict(client.training.metrics(event="epoch_end", data=data, model_id=run["modelId"]))


def saved(client: Platform, run: dict[str, Any], url: dict[str, Any]) -> dict[str, Any]:
    data = {"runId": run["runId"], "modelPath": url["gcsPath"], "uploadPath": url["uploadPath"]}
    return dict(client.training.metrics(event="checkpoint_saved", data=data, model_id=run["modelId"]))


def completed(client: Platform, run: dict[str, Any]) -> dict[str, Any]:
    data = {
        "results": {"metrics": {}, "bestEpoch": 1, "bestFitness": 0.1},
        "runId": run["runId"],
        "plots": [],
    }
    return dict(client.training.metrics(event="training_complete", data=data, model_id=run["modelId"]))


def upload_url(client: Platform, run: dict[str, Any], filename: str = "best.pt") -> dict[str, Any]:
    url = client.models.upload_checkpoint(filename=filename, model_id=run["modelId"], run_id=run["runId"])
    return dict(url)


def put(url: str, content: Any, **headers: str) -> requests.Response:
    head = {"Content-Type": "application/octet-stream"} | headers
    with requests.Session() as session:
        session.trust_env = False
        return session.put(url, data=content, headers=head, timeout=20)


def statuses(sandbox: Sandbox) -> list[int]:
    """The statuses of all responses. Waits: a status is recorded shortly after the client has it."""
    assert sandbox.wait_until(lambda: all(each.ended for each in sandbox.requests))
    return [each.status for each in sandbox.requests]


# --- a whole run


def test_a_whole_run_arrives(sandbox: Sandbox, client: Platform, tmp_path: Path) -> None:
    weights = os.urandom((2 << 20) + 5)
    (tmp_path / "best.pt").write_bytes(weights)

    run = started(client)
    responses = [epoch_end(client, run, epoch) for epoch in range(3)]
    client.training.metrics(
        event="console_output", data={"chunkId": 1, "content": "x", "lineCount": 1}, model_id=run["modelId"]
    )
    url = upload_url(client, run)
    with (tmp_path / "best.pt").open("rb") as file:
        arrived = put(url["uploadUrl"], file)
    during = sandbox.run(run["modelId"])
    promoted = saved(client, run, url)
    completed(client, run)

    record = sandbox.run(run["modelId"])
    assert sandbox.runs == [run["modelId"]] and sandbox.models == []
    assert (record.project, record.name, record.run_id) == ("bob/coco", "train", run["runId"])
    assert [each.event for each in record.events] == [
        "training_started",
        *["epoch_end"] * 3,
        "console_output",
        "checkpoint_saved",
        "training_complete",
    ]
    assert all(each["received"] is True and "cancelled" not in each for each in responses)
    assert list(record.epochs) == [0, 1, 2] and record.epochs[1]["metrics"]["train/box_loss"] == 0.5
    assert arrived.status_code == 200 and arrived.content == b"" and promoted["received"]
    assert len(during.staged) == 1 and during.files == [] and during.state == "training"
    assert record.staged == [] and [each.filename for each in record.files] == ["best.pt"]
    assert record.files[0].size == len(weights)
    assert record.files[0].sha256 == hashlib.sha256(weights).hexdigest()
    assert record.files[0].path is not None and record.files[0].path.read_bytes() == weights
    assert record.state == "complete" and record.duplicates == []


def test_requests_have_the_kinds_of_a_queue_and_the_storage_needs_no_key(
    sandbox: Sandbox, client: Platform
) -> None:
    run = started(client)
    epoch_end(client, run, 7)
    url = upload_url(client, run)
    put(url["uploadUrl"], b"weights")
    saved(client, run, url)
    client.training.metrics(event="training_progress", data={}, model_id=run["modelId"])
    completed(client, run)

    assert [(each.method, each.kind, each.event, each.with_key) for each in sandbox.requests] == [
        ("POST", "registration", "training_started", True),
        ("POST", "metrics", "epoch_end", True),
        ("POST", "ckpt", None, True),
        ("PUT", "ckpt", None, False),
        ("POST", "ckpt", "checkpoint_saved", True),
        ("POST", "heartbeat", "training_progress", True),
        ("POST", "completion", "training_complete", True),
    ]
    assert sandbox.requests[1].epochs == (7,)
    assert {each.model_id for each in sandbox.requests[1:]} == {run["modelId"]}


@pytest.mark.parametrize(
    "event",
    [
        "training_progress",
        "epoch_end",
        "system_metrics",
        "console_output",
        "checkpoint_saved",
        "training_complete",
        "training_failed",
    ],
)
def test_every_event_is_refused_for_an_unknown_model(client: Platform, event: Any) -> None:
    data = {"epoch": 0, "runId": 1, "modelPath": "gs://nowhere"}

    with pytest.raises(APIError) as caught:
        client.training.metrics(event=event, data=data, model_id="0" * 24)

    assert caught.value.status_code == 404 and caught.value.json == {"error": "there is no such model"}


def test_a_wrong_key_is_refused(sandbox: Sandbox) -> None:
    with connected(sandbox, key="wrong") as stranger:
        with pytest.raises(APIError) as at_an_event:
            started(stranger)
        with pytest.raises(APIError) as at_an_upload:
            stranger.models.upload_checkpoint(filename="best.pt", model_id="x")

    assert (at_an_event.value.status_code, at_an_upload.value.status_code) == (401, 401)
    assert list(at_an_event.value.json) == ["error"] and sandbox.runs == []


def test_a_failed_run_reports_it(sandbox: Sandbox, client: Platform) -> None:
    run = started(client)

    client.training.metrics(event="training_failed", data={"error": "out of memory"}, model_id=run["modelId"])

    assert sandbox.run(run["modelId"]).state == "failed"


# --- names, resuming, stale runs, cancelling


def test_a_name_that_is_taken_gets_a_number(sandbox: Sandbox, client: Platform) -> None:
    runs = [started(client), started(client), started(client, name="other")]

    assert [run["modelSlug"] for run in runs] == ["train", "train-2", "other"]
    assert sandbox.run(runs[1]["modelId"]).asked_name == "train"


def resumed(client: Platform, model_id: str) -> dict[str, Any]:
    return dict(client.training.metrics(event="training_started", data=STARTED, model_id=model_id))


def test_a_known_model_is_resumed_as_a_new_run_of_it(sandbox: Sandbox, client: Platform) -> None:
    first = started(client)
    epoch_end(client, first, 0)

    second = resumed(client, first["modelId"])
    epoch_end(client, second, 1)

    record = sandbox.run(first["modelId"])
    assert second["modelId"] == first["modelId"] and second["runId"] > first["runId"]
    assert record.run_ids == [first["runId"], second["runId"]] and list(record.epochs) == [0, 1]
    assert [each.run_id for each in record.events if each.event == "epoch_end"] == record.run_ids


def test_an_unknown_model_cannot_be_resumed(client: Platform) -> None:
    with pytest.raises(APIError) as caught:
        resumed(client, "0" * 24)

    assert caught.value.status_code == 404


@pytest.mark.parametrize("end", ["complete", "cancelled"])
def test_a_run_that_has_ended_is_not_resumed(sandbox: Sandbox, client: Platform, end: str) -> None:
    run = started(client)
    if end == "complete":
        completed(client, run)
    else:
        sandbox.cancel(run["modelId"])

    response = resumed(client, run["modelId"])

    assert response["cancelled"] is True and response["action"] == "training_terminated"
    assert sandbox.run(run["modelId"]).state == end
    assert sandbox.run(run["modelId"]).run_ids == [run["runId"]]


def test_a_stale_run_changes_nothing(sandbox: Sandbox, client: Platform) -> None:
    old = started(client)
    url = upload_url(client, old)
    put(url["uploadUrl"], b"weights")
    new = resumed(client, old["modelId"])

    responses = [saved(client, old, url), completed(client, old)]
    with pytest.raises(APIError) as caught:
        upload_url(client, old)

    record = sandbox.run(new["modelId"])
    assert [each["ignored"] for each in responses] == ["stale_instance"] * 2
    assert record.state == "training" and record.files == [] and len(record.staged) == 1
    assert [each.ignored for each in record.events[-2:]] == ["stale_instance"] * 2
    assert caught.value.status_code == 409


def test_every_response_to_a_cancelled_run_reports_it_and_it_may_still_upload(
    sandbox: Sandbox, client: Platform
) -> None:
    run = started(client)
    sandbox.cancel(run["modelId"])

    response = epoch_end(client, run, 0)
    url = upload_url(client, run)
    put(url["uploadUrl"], b"partial")
    responses = [response, saved(client, run, url), completed(client, run)]

    record = sandbox.run(run["modelId"])
    assert all(each["cancelled"] is True and each["reason"] for each in responses)
    assert record.state == "cancelled" and [each.size for each in record.files] == [7]


# --- upload URLs


def test_an_upload_url_works_once(sandbox: Sandbox, client: Platform) -> None:
    url = upload_url(client, started(client))["uploadUrl"]

    responses = [put(url, b"first").status_code, put(url, b"second")]

    assert responses[0] == 200 and responses[1].status_code == 403
    assert responses[1].headers["content-type"].startswith("application/xml")
    assert [each.size for each in sandbox.run(sandbox.runs[0]).staged] == [5]


def test_an_expired_url_is_refused() -> None:
    with Sandbox(url_lifetime=0) as sandbox, connected(sandbox) as client:
        run = started(client)
        url = upload_url(client, run)

        assert put(url["uploadUrl"], b"late").status_code == 403
        assert sandbox.run(run["modelId"]).staged == []


def test_a_url_with_another_signature_is_refused(sandbox: Sandbox, client: Platform) -> None:
    url = upload_url(client, started(client))["uploadUrl"]

    assert put(url[:-1] + ("A" if url[-1] != "A" else "B"), b"x").status_code == 403
    assert put(url.partition("?")[0], b"x").status_code == 403
    assert put(url, b"x", **{"Content-Type": "text/plain"}).status_code == 403
    assert put(url, b"x").status_code == 200


def test_a_key_that_is_sent_to_the_storage_is_recorded(sandbox: Sandbox, client: Platform) -> None:
    run = started(client)

    put(upload_url(client, run)["uploadUrl"], b"x", Authorization=f"Bearer {KEY}")

    assert sandbox.requests[-1].with_key and sandbox.run(run["modelId"]).staged[0].with_key


def test_only_a_staged_object_of_the_run_is_promoted(sandbox: Sandbox, client: Platform) -> None:
    old, other = started(client), started(client)
    outdated, foreign = upload_url(client, old), upload_url(client, other)
    put(outdated["uploadUrl"], b"x")
    put(foreign["uploadUrl"], b"x")
    run = resumed(client, old["modelId"])
    empty = upload_url(client, run)

    refused = []
    for each in (empty, outdated, foreign, {**empty, "gcsPath": "gs://nowhere"}):
        with pytest.raises(APIError) as caught:
            saved(client, run, each)
        refused.append(caught.value.status_code)

    assert refused == [409] * 4
    assert sandbox.run(run["modelId"]).files == sandbox.run(other["modelId"]).files == []


def test_promoting_twice_makes_one_file_and_is_recorded(sandbox: Sandbox, client: Platform) -> None:
    run = started(client)
    url = upload_url(client, run)
    put(url["uploadUrl"], b"x")

    saved(client, run, url)
    first = sandbox.run(run["modelId"]).files
    again = saved(client, run, url)

    record = sandbox.run(run["modelId"])
    assert again["received"] and record.files == first and len(first) == 1
    assert [each.event for each in record.duplicates] == ["checkpoint_saved"]


def test_an_upload_that_names_no_run_counts_at_once(sandbox: Sandbox, client: Platform) -> None:
    run = started(client)

    url = client.models.upload_checkpoint(filename="last.pt", project="bob/coco", name="train")
    put(url["uploadUrl"], b"x")

    assert [each.filename for each in sandbox.run(run["modelId"]).files] == ["last.pt"]


# --- the budget


def test_a_key_above_its_budget_gets_the_time_to_wait() -> None:
    with (
        Sandbox(requests_per_minute=1, uploads_per_minute=1) as sandbox,
        connected(sandbox) as client,
        connected(sandbox, key="another") as other,
    ):
        run = started(client)
        upload_url(client, run)
        asked = datetime.now(UTC)
        responses = []
        for ask in (lambda: epoch_end(client, run, 0), lambda: upload_url(client, run)):
            with pytest.raises(APIError) as caught:
                ask()
            responses.append(caught.value)
        with httpx.Client(trust_env=False) as plain:
            response = plain.post(
                sandbox.url + "/api/webhooks/training/metrics",
                json={"event": "epoch_end", "data": {"epoch": 0}, "modelId": run["modelId"]},
                headers={"Authorization": f"Bearer {KEY}"},
            )

        assert [each.status_code for each in responses] == [429, 429] and list(responses[0].json) == ["error"]
        assert response.status_code == 429 and 1 <= int(response.headers["retry-after"]) <= 60
        assert datetime.fromisoformat(response.headers["x-ratelimit-reset"]) > asked
        assert list(sandbox.run(run["modelId"]).epochs) == []
        assert epoch_end(other, run, 0)["received"]


def test_a_client_that_waits_as_requested_succeeds() -> None:
    with Sandbox(requests_per_minute=60) as sandbox, connected(sandbox, retries=1) as client:
        run = started(client)

        sent = 0
        while sent < 500 and 429 not in statuses(sandbox):
            assert epoch_end(client, run, sent)["received"]
            sent += 1

        assert sent < 500 and len(sandbox.run(run["modelId"]).epochs) == sent
        assert statuses(sandbox)[-2:] == [429, 200]


# --- faults, as this client sees them


def test_a_fault_hits_one_event_and_the_client_tries_again(sandbox: Sandbox) -> None:
    with connected(sandbox, retries=2) as client:
        run = started(client)
        sandbox.fail("503:event=epoch_end:times=1")

        epoch_end(client, run, 0)
        completed(client, run)

    assert statuses(sandbox) == [200, 503, 200, 200]
    assert [each.event for each in sandbox.requests if each.fault] == ["epoch_end"]


def test_a_lost_acknowledgement_makes_a_second_run_unless_the_request_has_a_key(sandbox: Sandbox) -> None:
    with connected(sandbox, retries=1) as client:
        sandbox.fail("registration:lost-ack:times=1")
        blind = started(client)
        sandbox.fail("registration:lost-ack:times=1")
        keyed = started(client, name="keyed", extra_headers={"Idempotency-Key": "once"})

    names = [sandbox.run(each).name for each in sandbox.runs]
    assert names == ["train", "train-2", "keyed"] and blind["modelSlug"] == "train-2"
    assert keyed["modelSlug"] == "keyed" and sandbox.requests[-1].replayed
