"""A training whose destination is a bucket, on a real server: by the command line, with workers that are killed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import S3Proxy
from seaweed import ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY, Seaweed
from stage import environ_of, hubqueue, kill, python, start_worker, wait_until

from hubqueue.config.declaration import Key, Reader
from hubqueue.config.registry import declaration
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.outbox.outbox import open_outbox

pytestmark = pytest.mark.slow

_TRAIN = """
import sys
import hubqueue
with hubqueue.start_run("yolov8n.pt", args={"epochs": 2}, worker="none") as run:
    for epoch, path in enumerate(sys.argv[1:]):
        run.log_metrics({"loss": 1.0 / (epoch + 1)}, epoch=epoch)
        run.save_checkpoint(path, epoch=epoch, is_best=epoch == 0)
"""
# The answers of an upload in parts, in their order.
STEPS = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")


@pytest.fixture
def environ(migrated_home: Path, proxy: S3Proxy, bucket: str) -> dict[str, str]:
    start = "HUBQUEUE_DESTINATIONS__LAB__"
    return environ_of(
        migrated_home,
        **{
            "HUBQUEUE_DEFAULT_DESTINATION": "lab",
            f"{start}TYPE": "s3",
            f"{start}BUCKET": bucket,
            f"{start}ENDPOINT_URL": proxy.url,
            f"{start}PART_SIZE": "5 MiB",
            f"{start}PARTS_AT_ONCE": "1",
            f"{start}RATE_LIMITS__METRICS": "0",
            "HUBQUEUE_KEY_LAB": ACCESS_KEY,
            "HUBQUEUE_SECRET_ACCESS_KEY_LAB": SECRET_KEY,
            "HUBQUEUE_WORKER__LEASE": "1",
        },
    )


@pytest.fixture
def content() -> bytes:
    return b"".join(hashlib.sha256(b"%d" % at).digest() * 32_768 for at in range(11)) + b"the end"


def train(environ: dict[str, str], *paths: Path) -> None:
    out, _ = python(_TRAIN, environ, *map(str, paths)).communicate(timeout=120)
    assert "Traceback" not in out, out


def drain(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return hubqueue(environ, "drain", "--timeout", "60")


def left(environ: dict[str, str]) -> dict[str, int]:
    with open_outbox(Path(environ["HUBQUEUE_HOME"]), environ=environ) as outbox:
        totals: dict[str, int] = outbox.stats.totals()
    return {name: count for name, count in totals.items() if count}


@pytest.fixture
def reader(seaweed: Seaweed, bucket: str) -> Iterator[Reader]:
    declared = declaration("s3")
    settings = S3Settings("lab", bucket=bucket, endpoint_url=seaweed.url)
    key = Key(READER_KEY, {"secret_access_key": READER_SECRET})
    assert declared.read is not None
    with closing(declared.read(settings, lambda: (key,))) as made:
        yield made


def name_in(reader: Reader) -> str:
    """The name of the only run."""
    (run,) = reader.runs()
    return run.name


def keys_in(seaweed: Seaweed, bucket: str) -> list[str]:
    return [each["Key"] for each in seaweed.client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def open_uploads(seaweed: Seaweed, bucket: str) -> list[Any]:
    return list(seaweed.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


def test_a_training_arrives_and_can_be_read_back(
    environ: dict[str, str], tmp_path: Path, content: bytes, seaweed: Seaweed, bucket: str, reader: Reader
) -> None:
    (tmp_path / "a.pt").write_bytes(b"small")
    folder = tmp_path / "sharded"
    (folder / "rank é").mkdir(parents=True)
    (folder / "rank é" / "0.bin").write_bytes(content)
    (folder / "empty").write_bytes(b"")

    train(environ, tmp_path / "a.pt", folder)
    assert drain(environ).returncode == 0

    (run,) = reader.runs()
    assert (run.model, run.state) == ("yolov8n.pt", "finished") and run.name.startswith("yolov8n")
    first, second = reader.checkpoints(run.name)
    assert first.is_best and second.is_latest and second.is_folder
    found = {each.path: b"".join(reader.blocks(second, each)) for each in second.files}
    assert found == {"rank é/0.bin": content, "empty": b""}
    assert b"".join(reader.blocks(second, second.files[-1], start=len(content) - 7)) == b"the end"
    for checkpoint in (first, second):
        for each in checkpoint.files:
            stated = reader.hashed(checkpoint, each)
            assert stated is not None and (stated.size, stated.sha256) == (each.size, each.sha256)
    metrics = [key for key in keys_in(seaweed, bucket) if "/metrics/" in key]
    body = b"".join(seaweed.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in metrics)
    assert sorted(json.loads(line)["epoch"] for line in body.splitlines()) == [0, 1]
    assert open_uploads(seaweed, bucket) == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [True, False], ids=["asked", "answered"])
def test_a_killed_upload_is_continued_by_another_worker(
    environ: dict[str, str],
    tmp_path: Path,
    content: bytes,
    seaweed: Seaweed,
    bucket: str,
    proxy: S3Proxy,
    reader: Reader,
    step: str,
    before: bool,
) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    train(environ, tmp_path / "last.pt")
    fault = proxy.fault(step, part=2 if step == "UploadPart" else 0, hold=before, hold_after=not before)
    worker = start_worker(environ)
    assert fault.reached.wait(120)

    kill(worker)
    fault.go_on.set()
    wait_until(lambda: not proxy.at_once)
    assert drain(environ).returncode == 0

    (checkpoint,) = reader.checkpoints(name_in(reader))
    (file,) = checkpoint.files
    assert b"".join(reader.blocks(checkpoint, file)) == content
    assert open_uploads(seaweed, bucket) == []
    parts = [each.part for each in proxy.calls("UploadPart") if each.status == 200]
    # What was held is received after the kill, unless its connection was closed.
    repeated = {part for part in parts if parts.count(part) > 1}
    assert repeated <= ({2} if (step, before) == ("UploadPart", True) else set())
    assert set(parts) == {1, 2, 3}
    assert left(environ).keys() <= {"enqueued", "delivered"}


def test_a_cancelled_upload_is_removed_at_the_end_of_the_run(
    environ: dict[str, str], tmp_path: Path, content: bytes, seaweed: Seaweed, bucket: str, proxy: S3Proxy
) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    train(environ, tmp_path / "last.pt")
    fault = proxy.fault("UploadPart", part=2, hold=True)
    worker = start_worker(environ)
    assert fault.reached.wait(120)
    kill(worker)
    fault.go_on.set()
    wait_until(lambda: not proxy.at_once)
    assert len(open_uploads(seaweed, bucket)) == 1
    with open_outbox(Path(environ["HUBQUEUE_HOME"]), environ=environ) as outbox:
        (entry,) = [row["id"] for row in outbox.stats.entries(kind="ckpt")]

    assert hubqueue(environ, "cancel", str(entry)).returncode == 0
    assert drain(environ).returncode == 0

    assert open_uploads(seaweed, bucket) == []
    assert not [key for key in keys_in(seaweed, bucket) if "checkpoints" in key or "uploading" in key]


def test_older_checkpoints_are_removed_when_newer_ones_are_whole(
    environ: dict[str, str], tmp_path: Path, reader: Reader
) -> None:
    code = """
import sys
import hubqueue
run = hubqueue.start_run("yolov8n.pt", worker="none")
for epoch in range(4):
    run.save_checkpoint(sys.argv[1], epoch=epoch)
    import subprocess
    subprocess.run([sys.executable, "-m", "hubqueue", "drain", "--timeout", "60"], check=True)
run.finish(timeout=0)
"""
    (tmp_path / "last.pt").write_bytes(b"1")
    environ |= {"HUBQUEUE_DESTINATIONS__LAB__KEEP_LAST": "2"}

    out, _ = python(code, environ, str(tmp_path / "last.pt")).communicate(timeout=120)
    assert "Traceback" not in out, out

    assert [each.epoch for each in reader.checkpoints(name_in(reader))] == [2, 3]


def test_the_keys_are_nowhere(
    environ: dict[str, str], tmp_path: Path, seaweed: Seaweed, bucket: str, proxy: S3Proxy
) -> None:
    (tmp_path / "last.pt").write_bytes(b"1")
    train(environ, tmp_path / "last.pt")
    said = drain(environ)
    status, checked = hubqueue(environ, "status", "--json"), hubqueue(environ, "check")

    texts = [each.stdout + each.stderr for each in (said, status, checked)]
    home = Path(environ["HUBQUEUE_HOME"])
    written = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    objects = [
        seaweed.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys_in(seaweed, bucket)
    ]
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret not in "".join(texts)
        assert secret.encode() not in written + b"".join(objects)
    assert all(SECRET_KEY not in str(each.headers) + each.key for each in proxy.seen)
    assert "accepts the key" in checked.stdout


Explain = Callable[[dict[str, str]], None]


@pytest.mark.parametrize(
    ("setting", "value", "reason", "hint"),
    [
        ("BUCKET", "no-such-bucket", "there is no bucket 'no-such-bucket'", "create it"),
        ("ENDPOINT_URL", "http://127.0.0.1:9", "connection refused", "try again later"),
    ],
)
def test_check_names_what_is_wrong_and_what_to_do(
    environ: dict[str, str], setting: str, value: str, reason: str, hint: str
) -> None:
    environ[f"HUBQUEUE_DESTINATIONS__LAB__{setting}"] = value

    checked = hubqueue(environ, "check")

    assert checked.returncode == 1
    assert reason in checked.stdout and hint in checked.stdout
