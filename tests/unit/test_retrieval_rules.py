"""Which checkpoint is meant, and which paths of a manifest are safe to write."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hubqueue.domain.errors import InvalidArgument, NotThere
from hubqueue.domain.snapshots.manifest import MOST_FILES, manifest_text
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile
from hubqueue.retrieval.choosing import choose, parse
from hubqueue.retrieval.paths import local_name, name_problem, problem_of

HASH = hashlib.sha256(b"x").hexdigest()
THREE = (
    StoredCheckpoint("epoch-0003", (), epoch=3, is_best=True),
    StoredCheckpoint("epoch-0004", (), epoch=4, step=120, is_latest=True),
    StoredCheckpoint("epoch-0005", (), epoch=5, step=150),
)


def folder(*paths: str, **values: object) -> StoredCheckpoint:
    files = tuple(StoredFile(path, 1, HASH) for path in paths)
    return StoredCheckpoint("epoch-0001", files, is_folder=True, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("latest", "epoch-0004"),
        ("best", "epoch-0003"),
        ("epoch:5", "epoch-0005"),
        ("step:120", "epoch-0004"),
    ],
)
def test_a_checkpoint_is_chosen_by_its_kind_epoch_or_step(which: str, name: str) -> None:
    assert choose(THREE, parse(which), run="r").name == name


def test_without_a_mark_the_latest_is_the_one_of_the_highest_epoch() -> None:
    assert choose(THREE[::2], parse("latest"), run="r").name == "epoch-0005"


def test_a_checkpoint_that_is_not_there_is_an_error_with_what_there_is() -> None:
    for which, what in (("epoch:9", "of epoch 9"), ("final", "that is final")):
        with pytest.raises(NotThere, match=f"run r has no checkpoint {what} there") as caught:
            choose(THREE, parse(which), run="r")
        assert caught.value.hint == "it has epoch-0003, epoch-0004, epoch-0005"
    with pytest.raises(NotThere, match="no whole checkpoint"):
        choose((), parse("latest"), run="r")


@pytest.mark.parametrize("text", ["", "newest", "epoch", "epoch:", "epoch:-1", "epoch:1.5", "step:x", "all"])
def test_another_word_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="which must be latest, best, final"):
        parse(text)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../x", "leads out of the folder"),
        ("a/../../x", "leads out of the folder"),
        ("/etc/passwd", "is absolute"),
        ("C:\\Windows\\x", "is absolute"),
        ("C:/Windows/x", "is absolute"),
        ("\\\\server\\share\\x", "is absolute"),
        ("a\0b", "has a NUL in it"),
        ("a//b", "is not in its shortest form"),
        ("./a", "is not in its shortest form"),
        ("a/", "is not in its shortest form"),
        ("", "of a file is empty"),
        ("\udcff", "is not valid Unicode"),
    ],
)
def test_a_path_that_is_not_below_the_folder_is_refused(path: str, why: str) -> None:
    problem = problem_of(folder("model.bin", path))

    assert problem is not None
    assert why in problem


@pytest.mark.parametrize(
    "path", ["CON", "sub/nul.txt", "a:b", "a\\..\\..\\b", "x.", "x ", "lpt1.bin", 'q"', "tab\tb", "COM¹"]
)
def test_what_only_windows_cannot_store_is_refused_only_there(path: str) -> None:
    assert problem_of(folder(path)) is None
    assert problem_of(folder(path), windows=True) is not None


def test_two_paths_that_are_one_file_are_refused() -> None:
    assert "are the same file" in (problem_of(folder("a", "a")) or "")
    assert "is a file and a folder" in (problem_of(folder("a", "a/b/c")) or "")
    for twins in (("a/W", "A/w"), ("stra\u00dfe", "STRASSE"), ("e\u0301", "\u00e9")):
        assert problem_of(folder(*twins)) is None
        assert "are the same file" in (problem_of(folder(*twins), folds_case=True) or "")


@given(
    some.lists(some.sampled_from(["..", ".", "", "a", "b c", "C:", "é", "\\", "\0"]), min_size=1, max_size=5)
)
def test_a_path_without_a_problem_stays_below_its_folder(parts: list[str]) -> None:
    import posixpath

    path = "/".join(parts)

    if problem_of(folder(path)) is None:
        assert posixpath.normpath(posixpath.join("/part", path)) == f"/part/{path}"


def test_sizes_and_hashes_that_are_not_possible_are_refused() -> None:
    for file, why in (
        (StoredFile("a", -1, HASH), "the size of 'a' is invalid"),
        (StoredFile("a", 1, "abc"), "the SHA-256 of 'a' is invalid"),
        (StoredFile("a", 1, HASH.upper()), "the SHA-256 of 'a' is invalid"),
    ):
        assert problem_of(StoredCheckpoint("one", (file,))) == why


def test_a_list_without_files_or_with_too_many_is_refused() -> None:
    one = StoredFile("a", 1, HASH)

    assert problem_of(folder()) == "it lists no file: its manifest is damaged, or of a newer version"
    assert problem_of(StoredCheckpoint("one", (one, one))) == "it is one file, but lists 2"
    assert f"more than {MOST_FILES}" in (problem_of(folder(*map(str, range(MOST_FILES + 1)))) or "")


def test_a_list_that_is_not_the_one_that_was_saved_is_refused() -> None:
    saved = hashlib.sha256(manifest_text([("a", 1, HASH), ("b", 1, HASH)])).hexdigest()

    assert problem_of(folder("b", "a", manifest_sha256=saved)) is None
    assert problem_of(folder("a", manifest_sha256=saved)) == "its list of files is not the one that was saved"


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "/a", ""])
def test_a_name_that_is_no_name_of_a_file_is_refused(name: str) -> None:
    assert name_problem(name) is not None


def test_a_file_keeps_its_extension() -> None:
    names = [
        local_name(StoredCheckpoint("epoch-0001", (StoredFile(path, 1, HASH),)))
        for path in ("last.tar", "best", "x.we/ird", "x.;rm")
    ]

    assert names == ["epoch-0001.tar", "epoch-0001.pt", "epoch-0001.pt", "epoch-0001.pt"]
    assert local_name(folder("a.bin")) == "epoch-0001"
