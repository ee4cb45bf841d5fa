"""A training whose destination is a bucket, on a real server: by the command line, with workers that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from s3_proxy import S3Proxy
from s3_stage import open_uploads, three_parts
from seaweed import ACCESS_KEY, READER_KEY, READER_SECRET, SECRET_KEY, Seaweed
from stage import ROOT, environ_of, hubqueue, kill, python, start_worker, wait_until

from hubqueue.config.declaration import Key, Reader
from hubqueue.config.registry import declaration
from hubqueue.destinations.base import DestinationUnavailable
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
    return three_parts()


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
    assert open_uploads(seaweed.client, bucket) == []


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
    assert open_uploads(seaweed.client, bucket) == []
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
    assert len(open_uploads(seaweed.client, bucket)) == 1
    with open_outbox(Path(environ["HUBQUEUE_HOME"]), environ=environ) as outbox:
        (entry,) = [row["id"] for row in outbox.stats.entries(kind="ckpt")]

    assert hubqueue(environ, "cancel", str(entry)).returncode == 0
    assert drain(environ).returncode == 0

    assert open_uploads(seaweed.client, bucket) == []
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


def with_profiles(environ: dict[str, str], folder: Path) -> dict[str, str]:
    """The same destination, with the credentials of an AWS configuration with two profiles."""
    file = folder / "credentials"
    pair = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    file.write_text(f"[training]\n{pair}[other]\n{pair}")
    kept = {name: value for name, value in environ.items() if not name.endswith("KEY_LAB")}
    return {**kept, "AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_PROFILE": "training"}


def test_a_run_of_a_profile_is_sent_with_this_profile_only(
    environ: dict[str, str], tmp_path: Path, reader: Reader
) -> None:
    environ = with_profiles(environ, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"1")
    train(environ, tmp_path / "last.pt")

    other = hubqueue({**environ, "AWS_PROFILE": "other"}, "drain", "--timeout", "5")
    assert other.returncode == 3 and "they were started" in other.stdout + other.stderr
    assert list(reader.runs()) == []

    assert drain(environ).returncode == 0
    assert len(reader.checkpoints(name_in(reader))) == 1


def test_a_login_takes_over_the_runs_whose_profile_has_no_credentials(
    environ: dict[str, str], tmp_path: Path, reader: Reader
) -> None:
    environ = with_profiles(environ, tmp_path) | {"AWS_PROFILE": "training"}
    Path(environ["AWS_SHARED_CREDENTIALS_FILE"]).write_text("[training]\nregion = eu-central-1\n")
    (tmp_path / "last.pt").write_bytes(b"1")
    train(environ, tmp_path / "last.pt")
    assert drain(environ).returncode == 3
    checked = hubqueue(environ, "check")
    assert "the key is missing" in checked.stdout and "hubqueue login lab" in checked.stdout

    assert hubqueue(environ, "login", "lab", stdin=f"{ACCESS_KEY}\n{SECRET_KEY}\n").returncode == 0

    assert drain(environ).returncode == 0
    assert len(reader.checkpoints(name_in(reader))) == 1


def test_the_memory_does_not_grow_with_the_size_of_a_part(
    environ: dict[str, str], tmp_path: Path, seaweed: Seaweed, bucket: str
) -> None:
    code = """
import sys, tracemalloc
from dataclasses import replace
from pathlib import Path
from hubqueue.destinations.base import quiet
from hubqueue.destinations.layout.store import Source
from hubqueue.destinations.base import DestinationUnavailable
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.store import Bucket
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.body import SnapshotBody
from s3_stage import KEY
import hashlib
path, url, bucket = Path(sys.argv[1]), *sys.argv[2:]
size = path.stat().st_size
with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
snapshot = Snapshot(path.name, size, 0, sha256)
source = Source(size, sha256, lambda: SnapshotBody(path.open("rb"), snapshot))
store = Bucket(S3Settings("lab", bucket=bucket, endpoint_url=url, part_size=32 << 20), lambda: (KEY,))
store.check()
tracemalloc.start()
with store.sending({}, quiet()) as objects:
    objects.upload("run/large.pt", source, quiet(), None)
print(tracemalloc.get_traced_memory()[1])
"""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(128 << 20)

    found = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large", seaweed.url, bucket],
        env={**environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )

    # A ring of 4 MiB for the hashes, a MiB for each of four parts, and their copies on the way to the socket.
    assert int(found.stdout) < 16 << 20


def test_a_reader_without_permission_says_what_to_repair(seaweed: Seaweed) -> None:
    declared = declaration("s3")
    settings = S3Settings("lab", bucket="no-such-bucket", endpoint_url=seaweed.url)
    key = Key(READER_KEY, {"secret_access_key": READER_SECRET})
    assert declared.read is not None

    with (
        closing(declared.read(settings, lambda: (key,))) as reader,
        pytest.raises(DestinationUnavailable) as failed,
    ):
        list(reader.runs())

    assert "there is no bucket" in str(failed.value)
    assert failed.value.hint == "create it, or correct destinations.lab.bucket"


def test_pull_and_verify_by_the_command_line(
    environ: dict[str, str], tmp_path: Path, content: bytes, seaweed: Seaweed, bucket: str
) -> None:
    code = """
import sys
import hubqueue
with hubqueue.start_run("resnet50", name="trial", worker="none") as run:
    run.log_metrics({"loss": 0.5}, step=120)
    run.save_checkpoint(sys.argv[1], step=120)
"""
    (tmp_path / "last.pt").write_bytes(content)
    out, _ = python(code, environ, str(tmp_path / "last.pt")).communicate(timeout=120)
    assert "Traceback" not in out, out
    assert drain(environ).returncode == 0

    pulled = hubqueue(
        environ, "pull", "lab", "--run", "trial", "--which", "step:120", "--to", str(tmp_path / "here")
    )
    verified = hubqueue(environ, "verify", "lab", "--run", "trial")
    (key,) = [each for each in keys_in(seaweed, bucket) if each.endswith("checkpoint.pt")]
    seaweed.client.put_object(Bucket=bucket, Key=key, Body=content[:-1] + b"?")
    damaged = hubqueue(environ, "verify", "lab", "--run", "trial")

    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).read_bytes() == content
    assert verified.returncode == 0 and damaged.returncode == 1
    assert key == "hubqueue/trial/checkpoints/step-00000120/checkpoint.pt"


def test_a_shell_without_the_bucket_names_its_address(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"1")
    train(environ, tmp_path / "last.pt")
    bare = {name: value for name, value in environ.items() if "DESTINATION" not in name}

    status = hubqueue(bare, "status")

    assert "of type 's3' for http://127.0.0.1:" in status.stdout
