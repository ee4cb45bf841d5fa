"""`hubqueue.pull`: whole and verified, or nothing; resumed after an interruption; never outside of its folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import shelf
from stage import environ_of, files_in, python

import hubqueue
from hubqueue.domain.errors import (
    ConfigError,
    DestinationUnavailable,
    InvalidArgument,
    NotThere,
    NotWhole,
    NotWritten,
    UnknownName,
)
from hubqueue.domain.snapshots.manifest import manifest_text
from hubqueue.outbox.outbox import open_outbox
from hubqueue.retrieval.pull import retrieve

RUN = "resnet50-0bf51cd3352d"
WEIGHTS = os.urandom(300_000)
FOLDER = {"config.json": b"{}", "model/a.bin": WEIGHTS, "model/empty": b""}


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    with shelf.installed(tmp_path / "site") as module:
        yield module


@pytest.fixture
def run(home: Path, tmp_path: Path, module: ModuleType) -> Path:
    """The run at the destination `lab`: a file of epoch 3, a folder of epoch 4."""
    shelf.configure(home, tmp_path / "shelf")
    folder = tmp_path / "shelf" / RUN
    shelf.put(folder, "epoch-0003", {"last.pt": WEIGHTS}, epoch=3)
    shelf.put(folder, "epoch-0004", FOLDER, epoch=4, is_folder=True, is_latest=True)
    return folder


def blocks(module: ModuleType) -> list[tuple[object, ...]]:
    """The requests for bytes since the last call."""
    found = [each for each in module.FAULTS.requests if each[0] == "blocks"]
    module.FAULTS.requests.clear()
    return found


def test_a_folder_and_a_file_arrive_as_they_were_saved(home: Path, run: Path, tmp_path: Path) -> None:
    folder = hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)
    file = hubqueue.pull("lab", run=RUN, which="epoch:3", to=tmp_path / "to", home=home)

    assert (folder, file) == (tmp_path / "to" / "epoch-0004", tmp_path / "to" / "epoch-0003.pt")
    assert files_in(folder) == FOLDER
    assert file.read_bytes() == WEIGHTS
    assert sorted(os.listdir(tmp_path / "to")) == ["epoch-0003.pt", "epoch-0004"]


def test_a_broken_off_pull_is_resumed_from_the_bytes_that_are_here(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    module.FAULTS.breaks_after = 200_000
    with pytest.raises(DestinationUnavailable, match="lab cannot be read: ConnectionResetError"):
        hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)
    assert os.listdir(tmp_path / "to") == [".epoch-0004.part"]
    assert blocks(module) == [("blocks", "config.json", 0), ("blocks", "model/a.bin", 0)]

    module.FAULTS.breaks_after = None
    path = hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)

    # What was here whole is not requested again, nor is an empty file.
    assert blocks(module) == [("blocks", "model/a.bin", 196_608)]
    assert files_in(tmp_path / "to") == {f"epoch-0004/{name}": body for name, body in FOLDER.items()}
    assert path.is_dir()


def test_bytes_of_another_version_are_not_kept(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    part = tmp_path / "to" / ".epoch-0004.part"
    (part / "model").mkdir(parents=True)
    (part / "model" / "a.bin").write_bytes(b"another version")
    (part / "config.json").write_bytes(b"longer than it is")
    (part / "stale" / "deep").mkdir(parents=True)
    (part / "stale" / "deep" / "x").write_bytes(b"of another checkpoint")
    (part / "model" / "empty").mkdir()

    path = hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)

    assert files_in(path) == FOLDER
    assert ("blocks", "model/a.bin", 0) in blocks(module)
    assert not (path / "stale").exists()


def test_damaged_bytes_at_the_destination_never_get_a_path(home: Path, run: Path, tmp_path: Path) -> None:
    (run / "epoch-0003" / "last.pt").write_bytes(WEIGHTS[:-1] + b"?")
    for damage, why in (
        (WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]), "its SHA-256 is not that of the file that was saved"),
        (WEIGHTS[:1000], "it ends after 1000 of 300000 bytes"),
        (WEIGHTS + b"more", "it has more than 300000 bytes"),
    ):
        (run / "epoch-0003" / "last.pt").write_bytes(damage)
        with pytest.raises(NotWhole, match=why):
            hubqueue.pull("lab", run=RUN, which="epoch:3", to=tmp_path / "to", home=home)
        assert os.listdir(tmp_path / "to") == [".epoch-0003.part"]

    (run / "epoch-0003" / "last.pt").write_bytes(WEIGHTS)
    assert (
        hubqueue.pull("lab", run=RUN, which="epoch:3", to=tmp_path / "to", home=home).read_bytes() == WEIGHTS
    )


@pytest.mark.parametrize(
    "path", ["../escaped", "/{}/escaped", "a/../../escaped", "C:\\escaped", "a\0b", "a", "sub/../../escaped"]
)
def test_a_manifest_cannot_lead_out_of_the_folder(home: Path, run: Path, tmp_path: Path, path: str) -> None:
    entry = {"size": 2, "sha256": shelf.hashlib.sha256(b"{}").hexdigest(), "ref": "config.json"}
    evil = {**entry, "path": path.format(str(tmp_path).strip("/"))}
    shelf.rewrite(run, "epoch-0004", files=[{**entry, "path": "a"}, evil])

    with pytest.raises(NotWhole, match=r"epoch-0004 at lab is not whole: the paths? "):
        hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)

    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path / "to").exists()


def test_a_list_that_was_changed_in_the_bucket_is_refused(home: Path, run: Path, tmp_path: Path) -> None:
    listed = [(path, len(body), shelf.hashlib.sha256(body).hexdigest()) for path, body in FOLDER.items()]
    saved = shelf.hashlib.sha256(manifest_text(sorted(listed))).hexdigest()
    shelf.rewrite(run, "epoch-0004", manifest_sha256=saved)
    assert files_in(hubqueue.pull("lab", run=RUN, to=tmp_path / "whole", home=home)) == FOLDER

    found = json.loads((run / "epoch-0004.json").read_text())
    shelf.rewrite(run, "epoch-0004", files=found["files"][:-1])

    with pytest.raises(NotWhole, match="its list of files is not the one that was saved"):
        hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)


def test_a_link_in_the_part_is_not_followed(home: Path, run: Path, tmp_path: Path) -> None:
    part, outside = tmp_path / "to" / ".epoch-0004.part", tmp_path / "outside"
    part.mkdir(parents=True)
    outside.mkdir()
    (outside / "a.bin").write_bytes(b"precious")
    (part / "model").symlink_to(outside)
    (part / "config.json").symlink_to(outside / "a.bin")

    path = hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)

    assert files_in(path) == FOLDER
    assert files_in(outside) == {"a.bin": b"precious"}


def test_what_is_there_is_kept_unless_forced(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    to = tmp_path / "to"
    (to / "epoch-0004").mkdir(parents=True)
    (to / "epoch-0004" / "mine").write_bytes(b"mine")
    (to / "epoch-0003.pt").write_bytes(b"mine")
    for which in ("latest", "epoch:3"):
        with pytest.raises(InvalidArgument, match="exists already, and is not this checkpoint"):
            hubqueue.pull("lab", run=RUN, which=which, to=to, home=home)
    assert files_in(to) == {"epoch-0003.pt": b"mine", "epoch-0004/mine": b"mine"}
    assert blocks(module) == []

    for which in ("latest", "epoch:3"):
        hubqueue.pull("lab", run=RUN, which=which, to=to, home=home, force=True)

    assert files_in(to) == {
        "epoch-0003.pt": WEIGHTS,
        **{f"epoch-0004/{name}": body for name, body in FOLDER.items()},
    }


def test_a_checkpoint_that_is_there_is_not_downloaded_again(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    for which in ("latest", "epoch:3"):
        first = hubqueue.pull("lab", run=RUN, which=which, to=tmp_path / "to", home=home)
        blocks(module)

        for force in (False, True):
            again = retrieve("lab", run=RUN, which=which, to=tmp_path / "to", home=home, force=force)

            assert again.pulled.path == first
            assert (again.pulled.received, again.pulled.resumed) == (0, again.checkpoint.size)
        assert blocks(module) == []


def test_what_appears_during_the_download_is_not_replaced(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    to = tmp_path / "to"

    def appear() -> None:
        (to / "epoch-0003.pt").write_bytes(b"mine")
        (to / "epoch-0004").mkdir(exist_ok=True)
        (to / "epoch-0004" / "mine").write_bytes(b"mine")

    module.FAULTS.on_block = appear
    for which in ("epoch:3", "latest"):
        with pytest.raises(InvalidArgument, match="exists already"):
            hubqueue.pull("lab", run=RUN, which=which, to=to, home=home)
        shutil.rmtree(to / "epoch-0004")
        (to / "epoch-0003.pt").unlink()


def test_several_processes_pull_the_same_checkpoint_once(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    """As the ranks of a training do at its start."""
    paths: list[Path] = []
    ranks = [
        threading.Thread(
            target=lambda: paths.append(hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home))
        )
        for _ in range(4)
    ]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()

    assert paths == [tmp_path / "to" / "epoch-0004"] * 4
    assert blocks(module) == [("blocks", "config.json", 0), ("blocks", "model/a.bin", 0)]
    assert os.listdir(tmp_path / "to") == ["epoch-0004"]


def test_a_full_disk_is_noticed_before_the_download(
    home: Path, run: Path, tmp_path: Path, module: ModuleType
) -> None:
    found = json.loads((run / "epoch-0003.json").read_text())
    shelf.rewrite(run, "epoch-0003", files=[{**found["files"][0], "size": 1 << 60}])

    with pytest.raises(NotWritten, match=r"of free space, the checkpoint needs 1152921\.5 TB"):
        hubqueue.pull("lab", run=RUN, which="epoch:3", to=tmp_path / "to", home=home)
    assert blocks(module) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(home: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(NotWritten, match=f"cannot write {tmp_path}/file") as caught:
        hubqueue.pull("lab", run=RUN, to=tmp_path / "file", home=home)
    assert isinstance(caught.value, OSError)
    with pytest.raises(NotWritten, match="Not a directory"):
        hubqueue.pull("lab", run=RUN, to=tmp_path / "file" / "below", home=home)


def test_the_paths_are_compared_as_the_file_system_compares_them(
    home: Path, run: Path, tmp_path: Path
) -> None:
    shelf.put(run, "epoch-0005", {"W": b"1", "w": b"2"}, epoch=5, is_folder=True)
    kept = hubqueue.pull("lab", run=RUN, which="epoch:5", to=tmp_path / "to", home=home)
    assert files_in(kept) == {"W": b"1", "w": b"2"}

    (tmp_path / "other").mkdir()
    # As if the disk did not distinguish them.
    (tmp_path / "other" / ".EPOCH-0005.PART").symlink_to(".epoch-0005.part")
    with pytest.raises(NotWhole, match="the paths 'W' and 'w' are the same file here"):
        hubqueue.pull("lab", run=RUN, which="epoch:5", to=tmp_path / "other", home=home)


def test_without_a_hash_nothing_is_resumed(home: Path, run: Path, tmp_path: Path, module: ModuleType) -> None:
    found = json.loads((run / "epoch-0003.json").read_text())
    shelf.rewrite(run, "epoch-0003", files=[{**found["files"][0], "sha256": None}])
    module.FAULTS.breaks_after = 200_000
    with pytest.raises(DestinationUnavailable):
        hubqueue.pull("lab", run=RUN, which="epoch:3", to=tmp_path / "to", home=home)
    module.FAULTS.breaks_after = None
    blocks(module)

    path = hubqueue.pull("lab", run=RUN, which="epoch:3", to=tmp_path / "to", home=home)

    assert blocks(module) == [("blocks", "last.pt", 0)]
    assert path.read_bytes() == WEIGHTS


# --- names


def test_the_run_of_this_home_is_found_by_its_id_name_or_a_part_of_its_id(
    home: Path, run: Path, tmp_path: Path
) -> None:
    with open_outbox(home) as outbox:
        for each in outbox.config.destinations.values():
            outbox.addresses.note(each, None)
        ids = {}
        for name, remote in (("mine", RUN), ("other", "other-run")):
            ids[name], _ = outbox.registry.start_run(
                destination="lab", model="resnet50.pt", kinds=(), remote_id=remote, name=name
            )
    assert ids["mine"] != ids["other"]

    for given in (RUN, ids["mine"], ids["mine"][:8], "mine", "0bf51cd3352d"):
        path = hubqueue.pull("lab", run=given, which="epoch:3", to=tmp_path / given, home=home)
        assert path.read_bytes() == WEIGHTS
    with pytest.raises(NotThere, match="lab has no run 'other'"):
        hubqueue.pull("lab", run="other", to=tmp_path / "to", home=home)


def test_an_id_that_begins_two_runs_is_refused(home: Path, run: Path, tmp_path: Path) -> None:
    with open_outbox(home) as outbox:
        outbox.addresses.note(outbox.config.destination("lab"), None)
        for each in ("abc000000001", "abc000000002"):
            outbox.registry.start_run(destination="lab", model="m.pt", kinds=(), new_id=each)

    with pytest.raises(UnknownName, match="2 runs begin with abc: abc"):
        hubqueue.pull("lab", run="abc", to=tmp_path / "to", home=home)


def test_a_run_of_a_training_is_found_by_the_id_it_has_at_another_destination(
    home: Path, run: Path, tmp_path: Path
) -> None:
    shelf.configure(home, tmp_path / "shelf", "[destinations.hub]", "type = 'hub'")
    with open_outbox(home) as outbox:
        outbox.note_destinations()
        first, _ = outbox.registry.start_run(
            destination="hub", model="m.pt", kinds=(), new_id="aaa", together="aaa"
        )
        outbox.registry.start_run(
            destination="lab", model="m.pt", kinds=(), remote_id=RUN, together=first, new_id="bbb"
        )

    assert hubqueue.pull("lab", run="aaa", which="epoch:3", to=tmp_path / "to", home=home).exists()


def test_a_misspelt_run_is_an_error_with_close_names(home: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="lab has no run 'resnet50-0bf51cd33'") as caught:
        hubqueue.pull("lab", run="resnet50-0bf51cd33", to=tmp_path / "to", home=home)

    assert caught.value.hint == (f"did you mean {RUN}? hubqueue pull lab --list shows its runs")


def test_a_damaged_outbox_does_not_prevent_a_pull_by_name(home: Path, run: Path, tmp_path: Path) -> None:
    (home / "outbox.db").write_bytes(b"not a database" * 1000)

    assert hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home).is_dir()


def test_no_outbox_is_made_and_nothing_of_it_is_loaded(home: Path, run: Path, tmp_path: Path) -> None:
    code = (
        "import sys, hubqueue; hubqueue.pull('lab', run='0bf51cd3352d', to=sys.argv[1], home=sys.argv[2]);"
        "print(sorted({'sqlalchemy', 'requests', 'apscheduler'} & set(sys.modules)))"
    )
    environ = environ_of(home, PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{shelf.ROOT}")

    out, _ = python(code, environ, str(tmp_path / "to"), str(home), fresh=True).communicate(timeout=60)

    assert out == "[]\n"

    assert os.listdir(home) == ["config.toml"]


# --- the destination


def test_a_destination_that_cannot_be_read_is_an_error_with_those_that_can(
    home: Path, run: Path, tmp_path: Path
) -> None:
    shelf.configure(home, tmp_path / "shelf", "[destinations.hub]", "type = 'hub'")
    with pytest.raises(InvalidArgument, match=r"destination hub \(type hub\) cannot be read") as caught:
        hubqueue.pull("hub", run=RUN, to=tmp_path / "to", home=home)
    assert caught.value.hint == "these can: lab"

    (home / "config.toml").write_text("")
    with pytest.raises(InvalidArgument) as caught:
        hubqueue.pull("hub", run=RUN, to=tmp_path / "to", home=home)
    assert "shelf" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="unknown destination 'labs'"):
        hubqueue.pull("labs", run=RUN, to=tmp_path / "to", home=home)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.EIO, "Input/output error"), "try again later; hubqueue check finds out why"),
        (TypeError("no such argument"), "report it to the author of this type of destination"),
        (SystemExit(3), "report it to the author of this type of destination"),
    ],
)
def test_what_a_reader_raises_is_one_clear_error(
    home: Path, run: Path, tmp_path: Path, module: ModuleType, error: BaseException, hint: str
) -> None:
    module.FAULTS.away = error

    with pytest.raises(DestinationUnavailable, match="lab cannot be read: ") as caught:
        hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)

    assert caught.value.hint == hint
    assert module.FAULTS.requests[-1] == ("close",)
    assert not (tmp_path / "to").exists()


def test_a_reader_that_is_refused_without_a_key_leads_to_login(home: Path, tmp_path: Path) -> None:
    shelf.configure(home, tmp_path / "shelf")
    with shelf.installed(tmp_path / "site", secrets='(Secret("key"),)') as module:
        module.FAULTS.away = DestinationUnavailable("403: access denied", hint="look at the policy")

        with pytest.raises(DestinationUnavailable, match="403: access denied") as caught:
            hubqueue.pull("lab", run=RUN, to=tmp_path / "to", home=home)

    assert caught.value.hint == "hubqueue login lab"
