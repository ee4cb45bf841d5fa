"""`hubqueue.verify`: what was delivered is compared with the entries of this home, the manifest, and the bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
import shelf

import hubqueue
from hubqueue.domain.errors import DestinationUnavailable, NotThere
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("migrated_home")

WEIGHTS = os.urandom(100_000)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    with shelf.installed(tmp_path / "site") as module:
        yield module


@pytest.fixture
def run(home: Path, tmp_path: Path, module: ModuleType) -> Path:
    """A run whose checkpoints were delivered: a file of epoch 0, a folder of epoch 1."""
    shelf.configure(home, tmp_path / "shelf", "rate_limits.ckpt = 0")
    (tmp_path / "last.pt").write_bytes(WEIGHTS)
    (tmp_path / "ckpt" / "model").mkdir(parents=True)
    (tmp_path / "ckpt" / "model" / "a.bin").write_bytes(WEIGHTS)
    (tmp_path / "ckpt" / "config.json").write_bytes(b"{}")
    with hubqueue.start_run("resnet50.pt", destination="lab", home=home, worker="none", strict=True) as run:
        for epoch, name in enumerate(("last.pt", "ckpt")):
            run.save_checkpoint(tmp_path / name, epoch=epoch)
            deliver(home)
        assert run.id is not None
    module.FAULTS.requests.clear()
    return tmp_path / "shelf" / run.id


def deliver(home: Path) -> None:
    with open_outbox(home) as outbox:
        worker = Worker(outbox, emit=lambda _fact: None)
        assert worker.start()
        while worker.step():
            assert worker.wait_free(60)
        worker.stop(timedelta(0))


def verified(home: Path, run: Path, **options: object) -> hubqueue.Verification:
    return hubqueue.verify("lab", run=run.name, home=home, **options)  # type: ignore[arg-type]


def differences(found: hubqueue.Verification) -> list[str]:
    return [str(each) for each in found.differences]


def test_what_was_delivered_is_there_and_as_recorded(home: Path, run: Path, module: ModuleType) -> None:
    found = verified(home, run)

    assert found
    assert [(each.name, each.files, each.size) for each in found.checkpoints] == [
        ("epoch-0000", 1, 100_000),
        ("epoch-0001", 2, 100_002),
    ]
    assert [(each.read, each.recorded) for each in found.checkpoints] == [(False, True)] * 2
    assert not [each for each in module.FAULTS.requests if each[0] == "blocks"]


def test_the_bytes_are_read_where_no_hash_is_stated_or_on_request(
    home: Path, run: Path, module: ModuleType
) -> None:
    progress: list[tuple[int, int, int]] = []

    def note(here: int, before: int, total: int) -> None:
        progress.append((here, before, total))

    for states, read in ((True, True), (False, False)):
        module.FAULTS.states = states
        found = verified(home, run, read=read, progress=note)

        assert found
        assert all(each.read for each in found.checkpoints)
        assert progress[-1] == (200_002, 0, 200_002)


@pytest.mark.parametrize("read", [False, True])
def test_a_changed_byte_a_missing_file_and_another_size_are_found(home: Path, run: Path, read: bool) -> None:
    changed = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
    (run / "epoch-0000" / "last.pt").write_bytes(changed)
    (run / "epoch-0001" / "config.json").unlink()
    (run / "epoch-0001" / "model" / "a.bin").write_bytes(WEIGHTS[:-1])

    found = verified(home, run, read=read)

    assert not found
    bytes_differ = (
        "its bytes are not those that were saved"
        if read
        else "its SHA-256 is not that of the file that was saved"
    )
    assert differences(found) == [
        f"epoch-0000: last.pt: {bytes_differ}",
        "epoch-0001: config.json: it is not there",
        "epoch-0001: model/a.bin: it has 99999 bytes, not 100000",
    ]


def test_a_manifest_that_was_changed_with_its_file_is_found_by_the_record_of_this_home(
    home: Path, run: Path, tmp_path: Path
) -> None:
    shelf.put(run, "epoch-0000", {"last.pt": b"other weights"}, epoch=0)
    record = home.with_name("elsewhere")
    shelf.configure(record, run.parent)

    found, elsewhere = verified(home, run), verified(record, run)

    assert differences(found) == ["epoch-0000: it is not what this home has recorded as delivered"]
    assert elsewhere
    assert [each.recorded for each in elsewhere.checkpoints] == [False, False]


def test_a_changed_list_of_a_folder_is_found(home: Path, run: Path) -> None:
    files = [{"path": "config.json", "size": 2, "sha256": shelf.hashlib.sha256(b"{}").hexdigest()}]
    shelf.rewrite(run, "epoch-0001", files=files)

    assert differences(verified(home, run, which="epoch:1")) == [
        "epoch-0001: its list of files is not the one that was saved"
    ]


@pytest.mark.parametrize("read", [False, True])
def test_a_changed_file_is_found_where_the_manifest_has_lost_its_hash(
    home: Path, run: Path, module: ModuleType, read: bool
) -> None:
    """The record of this home proves it alone."""
    for name, path in (("epoch-0000", "last.pt"), ("epoch-0001", "model/a.bin")):
        (run / name / path).write_bytes(os.urandom(len(WEIGHTS)))
        found = shelf.json.loads((run / f"{name}.json").read_text())["files"]
        shelf.rewrite(run, name, files=[each | {"sha256": None} for each in found], manifest_sha256=None)
    module.FAULTS.states = False

    assert differences(verified(home, run, read=read)) == [
        f"{name}: it is not what this home has recorded as delivered" for name in ("epoch-0000", "epoch-0001")
    ]


def test_a_changed_list_is_found_where_the_manifest_has_lost_its_own_hash(home: Path, run: Path) -> None:
    other = os.urandom(len(WEIGHTS))
    (run / "epoch-0001" / "model" / "a.bin").write_bytes(other)
    files = shelf.json.loads((run / "epoch-0001.json").read_text())["files"]
    for each in files:
        if each["path"] == "model/a.bin":
            each["sha256"] = shelf.hashlib.sha256(other).hexdigest()
    shelf.rewrite(run, "epoch-0001", files=files, manifest_sha256=None)

    assert differences(verified(home, run)) == [
        "epoch-0001: it is not what this home has recorded as delivered"
    ]


def test_a_delivered_checkpoint_that_is_gone_is_missing(home: Path, run: Path, tmp_path: Path) -> None:
    for name in ("epoch-0000", "epoch-0001"):
        (run / f"{name}.json").unlink()
    found = verified(home, run)
    assert not found
    assert differences(found) == [
        "epoch 0: it was delivered, and is not there",
        "epoch 1: it was delivered, and is not there",
    ]

    # Of a destination that removes older ones, the newest must be there.
    shelf.configure(home, tmp_path / "shelf", "keep = 1")
    assert differences(verified(home, run)) == ["epoch 1: it was delivered, and is not there"]
    with pytest.raises(NotThere, match="no whole checkpoint"):
        verified(home, run, which="latest")


def test_of_two_checkpoints_of_one_epoch_each_is_expected(home: Path, run: Path, tmp_path: Path) -> None:
    with open_outbox(home) as outbox, outbox.database.write() as tx:  # both were delivered as epoch 0
        tx.exec_driver_sql("UPDATE entries SET payload = replace(payload, '\"epoch\": 1', '\"epoch\": 0')")
    shelf.rewrite(run, "epoch-0001", epoch=0)
    assert verified(home, run)

    (run / "epoch-0001.json").unlink()

    assert differences(verified(home, run)) == ["epoch 0: it was delivered, and is not there"]


def test_only_the_chosen_checkpoint_is_compared(home: Path, run: Path) -> None:
    (run / "epoch-0000" / "last.pt").unlink()

    assert verified(home, run, which="epoch:1")
    assert not verified(home, run, which="epoch:0")
    assert not verified(home, run)


def test_a_path_that_leads_out_is_a_difference_and_never_asked_for(
    home: Path, run: Path, module: ModuleType
) -> None:
    entry = {"path": "../../x", "size": "2", "sha256": None}
    shelf.rewrite(run, "epoch-0001", files=[entry], manifest_sha256=None)

    found = verified(home, run, which="epoch:1", read=True)

    assert differences(found) == ["epoch-0001: the path '../../x' leads out of the folder"]
    assert ("hashed", "../../x") not in module.FAULTS.requests


def test_a_destination_that_breaks_off_is_no_verification(home: Path, run: Path, module: ModuleType) -> None:
    module.FAULTS.breaks_after = 10

    with pytest.raises(DestinationUnavailable, match="lab cannot be read"):
        verified(home, run, read=True)
