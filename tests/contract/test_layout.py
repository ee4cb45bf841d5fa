"""The layout of folders and buckets, over a folder: exact names and content, repeats, kinds, what is kept, and the reader."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from layout_stage import BLOCK, Box, Training, random_bytes

from hubqueue.destinations.base import Attempt, NotThere, Position, RunState
from hubqueue.destinations.layout.names import checkpoint_name, run_name, safe, stored_paths
from hubqueue.destinations.layout.retention import Keeping
from hubqueue.domain.outcome import Aborted, Blocked, Delivered, Rejected, RetryLater

RUN = "yolov8n-a1b2c3d4e5f6"


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


@pytest.fixture
def training(box: Box) -> Training:
    made = box.training()
    made.sent(made.start())
    return made


# --- exact names and content


def test_a_small_run_is_exactly_this(box: Box) -> None:
    training = box.training()
    training.sent(training.start({"epochs": 2, "api_key": "sk-0123456789abcdef", "lr": 0.1}))
    training.sent(training.metrics("0", "1"))
    training.sent(training.metrics("step:120"))
    last = training.sent(training.checkpoint(b"weights", epoch=1))
    best = training.sent(
        training.checkpoint({"a.bin": b"A", "optim/b.bin": b""}, step=120, kind="best", map=0.25)
    )
    training.sent(training.end(results={"fitness": 0.5}))

    tree = box.tree
    metrics = sorted(name for name in tree if "/metrics/" in name)

    assert sorted(tree) == sorted(
        [
            f"{RUN}/run.json",
            *metrics,
            f"{RUN}/checkpoints/epoch-0001/checkpoint.pt",
            f"{RUN}/checkpoints/epoch-0001/manifest.json",
            f"{RUN}/checkpoints/step-00000120/a.bin",
            f"{RUN}/checkpoints/step-00000120/manifest.json",
            f"{RUN}/checkpoints/step-00000120/optim/b.bin",
            f"{RUN}/best.json",
            f"{RUN}/latest.json",
        ]
    )
    assert [name.rpartition(".")[0][:-9] for name in metrics] == [
        f"{RUN}/metrics/00000000-00000001",
        f"{RUN}/metrics/00000120-00000120",
    ]
    assert tree[metrics[0]] == (
        b'{"epoch": 0, "time": "2026-12-01T00:00:02.000000Z", "metrics": {"loss": 0.5}}\n'
        b'{"epoch": 1, "time": "2026-12-01T00:00:03.000000Z", "metrics": {"loss": 0.5}}\n'
    )
    assert tree[metrics[1]].startswith(b'{"step": 120, "time": ')
    assert json.loads(tree[f"{RUN}/run.json"]) == {
        "version": 1,
        "id": "a1b2c3d4e5f6",
        "name": RUN,
        "model": "yolov8n.pt",
        "args": {"epochs": 2, "api_key": "***", "lr": 0.1},
        "host": "trainer",
        "versions": {"hubqueue": "1.0"},
        "state": "finished",
        "started_at": "2026-12-01T00:00:01.000000Z",
        "results": {"fitness": 0.5},
        "ended_at": "2026-12-01T00:00:07.000000Z",
    }
    assert json.loads(tree[f"{RUN}/checkpoints/epoch-0001/manifest.json"]) == {
        "version": 1,
        "run": "a1b2c3d4e5f6",
        "kind": "last",
        "epoch": 1,
        "step": None,
        "map": 0.0,
        "saved_at": "2026-12-01T00:00:05.000000Z",
        "key": last.idempotency_key,
        "folder": False,
        "files": [{"path": "checkpoint.pt", "size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}],
    }
    manifest = json.loads(tree[f"{RUN}/checkpoints/step-00000120/manifest.json"])
    snapshot = best.entries[0].snapshot
    assert (manifest["folder"], manifest["kind"], manifest["map"]) == (True, "best", 0.25)
    assert snapshot is not None and manifest["snapshot_sha256"] == snapshot.sha256
    assert [each["path"] for each in manifest["files"]] == ["a.bin", "optim/b.bin"]
    assert json.loads(tree[f"{RUN}/best.json"]) == {
        "checkpoint": "step-00000120",
        "manifest": "checkpoints/step-00000120/manifest.json",
        "kind": "best",
        "epoch": None,
        "step": 120,
        "map": 0.25,
        "saved_at": "2026-12-01T00:00:06.000000Z",
    }


def test_every_batch_may_be_repeated_after_a_lost_response(box: Box, training: Training) -> None:
    batches = [
        training.metrics("0", "1"),
        training.checkpoint(b"one", epoch=0),
        training.checkpoint({"x": b"two"}, epoch=0, kind="best"),
        training.checkpoint(b"three", epoch=1, kind="final"),
        training.end(),
    ]
    for batch in batches:
        training.sent(batch)
    before = box.tree

    for batch in batches:
        training.sent(batch)

    assert box.tree == before


def test_metrics_with_the_start_of_another_batchs_name_are_stored_beside_them(
    box: Box, training: Training
) -> None:
    first = training.sent(training.metrics("0"))
    (name,) = (box.path / RUN / "metrics").iterdir()
    name.write_bytes(b"another\n")

    training.sent(first)
    again = training.send(first)

    assert name.read_bytes() == b"another\n"
    assert len(list((box.path / RUN / "metrics").iterdir())) == 2
    assert isinstance(again, Delivered)
    for each in (box.path / RUN / "metrics").iterdir():
        each.write_bytes(b"another\n")
    assert isinstance(training.send(first), Rejected)


# --- the folder of a run


def test_a_name_of_another_run_is_not_taken(box: Box) -> None:
    first, second = box.training(id="a" * 12, name="mine"), box.training(id="b" * 12, name="mine")
    first.sent(first.start())
    before = box.tree

    second.sent(second.start())
    second.sent(second.start())
    second.sent(second.metrics("0"))

    assert (first.run.remote_id, second.run.remote_id) == ("mine", f"mine-{'b' * 12}")
    assert {name: text for name, text in box.tree.items() if name.startswith("mine/")} == before


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'{"id": 3}'])
def test_a_folder_of_another_program_is_not_taken(box: Box, content: bytes) -> None:
    (box.path / "mine").mkdir(parents=True)
    (box.path / "mine" / "run.json").write_bytes(content)
    (box.path / "photos").mkdir()
    (box.path / "photos" / "one.jpg").write_bytes(b"x")
    one, two = box.training(name="mine"), box.training(name="photos", id="b" * 12)

    one.sent(one.start())
    two.sent(two.start())

    assert (box.path / "mine" / "run.json").read_bytes() == content
    assert (one.run.remote_id, two.run.remote_id) == ("mine-a1b2c3d4e5f6", f"photos-{'b' * 12}")


def test_both_names_taken_hold_the_run(box: Box) -> None:
    for name in ("mine", "mine-a1b2c3d4e5f6"):
        (box.path / name).mkdir(parents=True)
        (box.path / name / "run.json").write_text("{}")
    training = box.training(name="mine")

    found = training.send(training.start())

    assert isinstance(found, Blocked) and "mine and mine-a1b2c3d4e5f6" in found.reason


def test_a_run_that_continues_is_running_again_and_keeps_its_start(box: Box, training: Training) -> None:
    training.sent(training.end(RunState.FAILED, error="out of memory"))
    ended = box.json(f"{RUN}/run.json")

    again = training.start()
    training.sent(again)
    training.sent(again)
    running = box.json(f"{RUN}/run.json")

    assert (ended.state, ended.error) == ("failed", "out of memory")
    assert running.state == "running" and not hasattr(running, "error") and not hasattr(running, "ended_at")
    assert running.started_at == "2026-12-01T00:00:01.000000Z"
    assert running.continued_at == "2026-12-01T00:00:03.000000Z"
    assert len(list(box.path.glob("yolo*"))) == 1


@pytest.mark.parametrize("remote_id", ["", "..", ".", "a/b", "/etc", "a\nb", None])
def test_a_name_that_leads_elsewhere_holds_the_run(box: Box, remote_id: str | None) -> None:
    training = box.training(remote_id=remote_id)

    assert isinstance(training.send(training.metrics("0")), Blocked)
    assert not box.path.exists()


# --- checkpoints


def test_the_same_bytes_of_another_kind_are_stored_once(box: Box, training: Training) -> None:
    training.sent(training.checkpoint(b"same", epoch=12))
    training.sent(training.checkpoint(b"same", epoch=12, kind="best", map=0.5, hashed=False))
    folder = box.path / RUN / "checkpoints" / "epoch-0012"

    assert [each.name for each in folder.parent.iterdir()] == ["epoch-0012"]
    assert sorted(each.name for each in folder.iterdir()) == [
        "checkpoint.pt",
        "manifest.best.json",
        "manifest.json",
    ]
    assert json.loads((folder / "manifest.json").read_text())["kind"] == "last"
    assert box.json(f"{RUN}/best.json").map == 0.5
    (found,) = box.reader().checkpoints(RUN)
    assert (found.is_latest, found.is_best, found.is_final, found.map) == (True, True, False, 0.5)


@pytest.mark.parametrize("left", [None, b"sa", b"SAME"])
@pytest.mark.parametrize("kind", ["last", "best"])
def test_a_file_that_was_lost_or_damaged_is_stored_again_when_its_checkpoint_is_saved_again(
    box: Box, training: Training, left: bytes | None, kind: str
) -> None:
    training.sent(training.checkpoint({"a": b"same", "b": b"other"}, epoch=12))
    file = box.path / RUN / "checkpoints" / "epoch-0012" / "a"
    file.unlink() if left is None else file.write_bytes(left)

    training.sent(training.checkpoint({"a": b"same", "b": b"other"}, epoch=12, kind=kind))

    assert file.read_bytes() == b"same"
    assert [each.name for each in file.parent.parent.iterdir()] == ["epoch-0012"]


def test_a_repeat_finds_that_a_file_of_its_whole_checkpoint_is_gone(box: Box, training: Training) -> None:
    batch = training.sent(training.checkpoint({"a": b"A", "b": b"B"}, epoch=12))
    before = box.tree
    (box.path / RUN / "checkpoints" / "epoch-0012" / "b").unlink()

    training.sent(batch)

    assert box.tree == before


def test_other_bytes_of_the_same_epoch_get_a_folder_of_their_own(box: Box, training: Training) -> None:
    training.sent(training.checkpoint(b"one", epoch=12))
    training.sent(training.checkpoint(b"two", epoch=12))
    training.sent(training.checkpoint({"x": b"3"}, epoch=12, kind="best"))

    found = box.reader().checkpoints(RUN)

    assert [each.name for each in found] == ["epoch-0012", "epoch-0012.2", "epoch-0012.3"]
    assert (box.path / RUN / "checkpoints/epoch-0012/checkpoint.pt").read_bytes() == b"one"
    assert [each.name for each in found if each.is_latest] == [
        "epoch-0012.2"
    ]  # a best one of the same epoch is not newer
    assert [each.name for each in found if each.is_best] == ["epoch-0012.3"]


def test_an_older_checkpoint_that_arrives_later_does_not_become_the_newest(
    box: Box, training: Training
) -> None:
    older, newer = training.checkpoint(b"older", epoch=3), training.checkpoint(b"newer", epoch=4)
    training.sent(newer)
    before = (box.path / RUN / "latest.json").read_bytes()

    training.sent(older)

    assert (box.path / RUN / "latest.json").read_bytes() == before
    assert len(box.reader().checkpoints(RUN)) == 2


@pytest.mark.parametrize(
    ("saved", "latest"),
    [
        ([("last", 5), ("best", 4)], "epoch-0005"),
        ([("last", 5), ("best", 6)], "epoch-0006"),
        ([("best", 6), ("last", 6)], "epoch-0006.2"),
        ([("last", 6), ("last", 3)], "epoch-0003"),
        ([("last", 5), ("final", 9)], "epoch-0005"),
        ([("final", 9)], "epoch-0009"),
    ],
)
def test_which_checkpoint_is_the_latest(
    box: Box, training: Training, saved: list[tuple[str, int]], latest: str
) -> None:
    for number, (kind, epoch) in enumerate(saved):
        training.sent(training.checkpoint(bytes([number]), epoch=epoch, kind=kind))

    assert [each.name for each in box.reader().checkpoints(RUN) if each.is_latest] == [latest]


def test_the_newest_is_found_without_what_names_it(box: Box, training: Training) -> None:
    for epoch in (1, 2):
        training.sent(training.checkpoint(bytes([epoch]), epoch=epoch))
    (box.path / RUN / "latest.json").unlink()

    assert [each.name for each in box.reader().checkpoints(RUN) if each.is_latest] == ["epoch-0002"]


def test_a_kill_before_the_newest_is_named_again_does_not_hide_it(box: Box, training: Training) -> None:
    training.sent(training.checkpoint(b"1", epoch=1))
    named = (box.path / RUN / "latest.json").read_bytes()
    training.sent(training.checkpoint(b"2", epoch=2))
    (box.path / RUN / "latest.json").write_bytes(named)

    assert [each.name for each in box.reader().checkpoints(RUN) if each.is_latest] == ["epoch-0002"]


def test_a_damaged_manifest_does_not_make_an_older_checkpoint_the_latest(
    box: Box, training: Training
) -> None:
    for epoch in (1, 2):
        training.sent(training.checkpoint(bytes([epoch]), epoch=epoch))
    (box.path / RUN / "checkpoints" / "epoch-0002" / "manifest.json").write_bytes(bytes(300))

    found = box.reader().checkpoints(RUN)

    assert [(each.name, each.epoch, len(each.files)) for each in found] == [
        ("epoch-0001", 1, 1),
        ("epoch-0002", 2, 0),
    ]
    assert [each.name for each in found if each.is_latest] == ["epoch-0002"]


def test_a_checkpoint_that_was_superseded_before_it_was_whole_is_deleted(
    box: Box, training: Training
) -> None:
    first = training.checkpoint(random_bytes(3 * BLOCK), epoch=1)
    other = training.checkpoint({"a": random_bytes(2 * BLOCK)}, epoch=1, kind="best")
    for batch in (first, other):
        assert isinstance(training.send(batch, _stopping(training, 2)), Aborted)
    unfinished = sorted(name for name in box.tree if "checkpoints" in name)

    training.sent(training.checkpoint(b"newer", epoch=2))

    assert unfinished == [
        f"{RUN}/checkpoints/epoch-0001.2/.a.part",
        f"{RUN}/checkpoints/epoch-0001/.checkpoint.pt.part",
    ]
    assert sorted(name for name in box.tree if "part" in name or "uploading" in name) == [
        f"{RUN}/checkpoints/epoch-0001.2/.a.part",  # the best one still waits
        f"{RUN}/uploading-best.json",
    ]
    training.sent(training.end())  # it was cancelled: nothing waits at the end
    assert not [name for name in box.tree if "part" in name or "uploading" in name]
    assert [each.name for each in (box.path / RUN / "checkpoints").iterdir()] == ["epoch-0002"]


def test_a_whole_checkpoint_that_was_superseded_before_it_was_settled_stays(
    box: Box, training: Training
) -> None:
    training.sent(training.checkpoint(b"whole", epoch=1))
    uploading = {"checkpoint": "epoch-0001", "key": "of-a-worker-that-was-killed"}
    (box.path / RUN / "uploading-last.json").write_text(json.dumps(uploading))

    training.sent(training.checkpoint(b"newer", epoch=2))

    assert (box.path / RUN / "checkpoints/epoch-0001/checkpoint.pt").read_bytes() == b"whole"


def test_what_is_missing_before_the_manifest_is_sent_again(box: Box, training: Training) -> None:
    content = {"a": b"1", "b": random_bytes(2 * BLOCK)}
    batch = training.checkpoint(content, epoch=0)
    assert isinstance(training.send(batch, _stopping(training, 2)), Aborted)
    training.progress[batch.idempotency_key] = json.dumps(
        {"folder": f"{RUN}/checkpoints/epoch-0000", "done": 1}
    )
    (box.path / RUN / "checkpoints/epoch-0000/a").unlink()

    first, second = training.send(batch), training.send(batch)

    assert isinstance(first, RetryLater) and "epoch-0000/a is not as it was stored" in first.reason
    assert isinstance(second, Delivered)


def test_files_of_another_program_in_the_way_are_not_touched(box: Box, training: Training) -> None:
    folder = box.path / RUN / "checkpoints" / "epoch-0001"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"a person's")

    training.sent(training.checkpoint(b"ours", epoch=1))

    assert (folder / "checkpoint.pt").read_bytes() == b"a person's"
    assert (box.path / RUN / "checkpoints/epoch-0001.2/checkpoint.pt").read_bytes() == b"ours"


def test_the_hash_of_a_snapshot_without_one_is_made_once(box: Box, training: Training) -> None:
    content = random_bytes(3 * BLOCK)
    batch = training.checkpoint(content, epoch=1, hashed=False)
    reads: list[int] = []
    training.on_block = reads.append
    stop = threading.Event()
    training.on_block = lambda start: (reads.append(start), len(reads) == 5 and stop.set())
    assert isinstance(training.send(batch, Attempt(lambda: None, lambda _: None, stop)), Aborted)

    training.on_block = reads.append
    training.sent(batch)

    assert reads.count(0) == 3  # once for the hash, and for each of the two attempts
    assert box.json(f"{RUN}/checkpoints/epoch-0001/manifest.json").files[0]["sha256"] == (
        hashlib.sha256(content).hexdigest()
    )


def test_the_bytes_of_all_files_are_reported_together(box: Box, training: Training) -> None:
    training.sent(training.checkpoint({"a": random_bytes(2 * BLOCK), "b": b"", "c": b"x"}, epoch=0))

    assert training.bytes == sorted(training.bytes)
    assert training.bytes[-1] == 2 * BLOCK + 1


# --- what is kept


def test_only_the_newest_are_kept_and_never_fewer(tmp_path: Path) -> None:
    box = Box(tmp_path / "box", keeping=Keeping(last=2, best=1))
    training = box.training()
    training.sent(training.start())
    for epoch in range(4):
        training.sent(training.checkpoint(bytes([epoch]), epoch=epoch))
        if epoch < 2:
            training.sent(training.checkpoint(b"best%d" % epoch, epoch=epoch, kind="best"))
    training.sent(training.checkpoint(b"final", epoch=0, kind="final"))
    names = [each.name for each in box.reader().checkpoints(RUN)]

    assert names == ["epoch-0000", "epoch-0001.2", "epoch-0002", "epoch-0003"]


def test_a_checkpoint_of_a_newer_version_is_not_deleted(tmp_path: Path) -> None:
    box = Box(tmp_path / "box", keeping=Keeping(last=1))
    training = box.training()
    training.sent(training.start())
    folder = box.path / RUN / "checkpoints"
    for name, manifest in (("epoch-0000", b'{"version": 2}'), ("epoch-0001", None), ("notes", None)):
        (folder / name).mkdir(parents=True)
        (folder / name / "x").write_bytes(b"x")
        if manifest:
            (folder / name / "manifest.json").write_bytes(manifest)

    training.sent(training.checkpoint(b"one", epoch=5))

    assert sorted(each.name for each in folder.iterdir()) == ["epoch-0000", "epoch-0005", "notes"]


# --- names


@pytest.mark.parametrize(
    ("part", "made"),
    [
        ("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors"),
        ("模型.bin", "模型.bin"),
        (".gitattributes", ".gitattributes"),
        ("a:b*c?.bin", "a_b_c_.bin"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("trailing. ", "trailing"),
        ("..", "_"),
        ("a\x07b\x7f", "a_b_"),
        ("e\u0301", "\u00e9"),
        (".x.part", "_x.part"),
    ],
)
def test_a_part_of_a_name_is_safe_everywhere(part: str, made: str) -> None:
    assert safe(part) == made
    assert safe(made) == made


def test_a_long_name_is_cut_by_its_bytes_and_stays_unique() -> None:
    one, two = safe("模" * 100 + "1.safetensors"), safe("模" * 100 + "2.safetensors")

    assert one != two and one.endswith(".safetensors")
    assert len(one.encode()) <= 120


@pytest.mark.parametrize(
    ("name", "usual"),
    [("my run", "my run"), ("a:b", "a_b"), ("con", "_con"), (".hubqueue", "_hubqueue"), ("..", "_")],
)
def test_the_name_of_a_run(name: str, usual: str) -> None:
    assert run_name(name, "x1") == (usual, f"{usual}-x1")


def test_paths_that_differ_by_case_or_meet_the_manifest_get_other_names() -> None:
    paths = [
        "A.bin",
        "a.bin",
        "a.bin/x",
        "b/c.pt",
        "B/c.pt",
        "manifest.json",
        "manifest.best.json",
        "x/manifest.json",
    ]

    stored = stored_paths(paths)

    assert stored == {
        "A.bin": "A.bin",
        "a.bin": "a~2.bin",
        "a.bin/x": "a~2.bin/x",
        "b/c.pt": "b/c.pt",
        "B/c.pt": "B~2/c.pt",
        "manifest.json": "manifest~2.json",
        "manifest.best.json": "manifest~2.best.json",
        "x/manifest.json": "x/manifest.json",
    }


# --- the reader


def test_the_reader_finds_what_was_sent(box: Box, training: Training) -> None:
    other = box.training(id="b" * 12, name="other")
    other.at += 10**9
    other.sent(other.start())
    content = {"CON": random_bytes(BLOCK + 5), "b": b""}
    training.sent(training.checkpoint(content, step=7, epoch=2, kind="best", map=0.5))
    training.sent(training.end())
    reader = box.reader()

    runs = list(reader.runs())
    (found,) = reader.checkpoints(RUN)
    bodies = {each.path: b"".join(reader.blocks(found, each)) for each in found.files}
    rest = b"".join(reader.blocks(found, found.files[0], start=BLOCK))
    hashed = [reader.hashed(found, each) for each in found.files]
    (box.path / RUN / "checkpoints/step-00000007/_CON").write_bytes(b"x")
    altered = reader.hashed(found, found.files[0])
    (box.path / RUN / "checkpoints/step-00000007/_CON").unlink()

    assert [(each.name, each.id, each.model, each.state) for each in runs] == [
        (RUN, "a1b2c3d4e5f6", "yolov8n.pt", "finished"),
        ("other", "b" * 12, "yolov8n.pt", "running"),
    ]
    assert (found.name, found.epoch, found.step, found.is_folder, found.map) == (
        "step-00000007",
        2,
        7,
        True,
        0.5,
    )
    assert bodies == content
    assert rest == content["CON"][BLOCK:]
    assert hashed == [replace(each, sha256=None) for each in found.files]  # a folder keeps no hash of its own
    assert altered is not None and altered.size == 1
    assert reader.hashed(found, found.files[0]) is None
    with pytest.raises(NotThere):
        next(iter(reader.blocks(found, found.files[0])))
    with pytest.raises(NotThere):
        reader.checkpoints("unknown")
    reader.close()


def test_a_manifest_that_leads_out_of_its_folder_is_not_read(box: Box, training: Training) -> None:
    training.sent(training.checkpoint(b"x", epoch=0))
    manifest = box.path / RUN / "checkpoints/epoch-0000/manifest.json"
    written = json.loads(manifest.read_text())

    for path in ("../../run.json", "/etc/passwd", "a/../../b", ""):
        for key in ("path", "stored"):
            manifest.write_text(json.dumps(written | {"files": [written["files"][0] | {key: path}]}))
            assert [each.files for each in box.reader().checkpoints(RUN)] == [()], path


def test_a_position_names_its_folder() -> None:
    assert checkpoint_name(Position(12, None), 1) == "epoch-0012"
    assert checkpoint_name(Position(12, 120), 3) == "step-00000120.3"


def _stopping(training: Training, block: int) -> Attempt:
    """An attempt that is stopped before a block is written (from 1)."""
    stop, seen = threading.Event(), []

    def on_block(start: Any) -> None:
        seen.append(start)
        if len(seen) == block:
            stop.set()

    training.on_block = on_block
    return Attempt(lambda: None, lambda _sent: None, stop)
