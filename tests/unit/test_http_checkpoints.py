"""The checkpoints that a server of one's own lists: each of them can be chosen."""

from __future__ import annotations

from typing import Any

from hubqueue.destinations.http.reader import stored_checkpoints


def manifest(at: int, kind: str, epoch: int, content: str) -> dict[str, Any]:
    name = f"epoch-{epoch:04d}"
    return {
        "name": name,
        "folder": f"{name}.{content}",
        "saved_at": f"2026-12-01T00:00:{at:02d}",
        "epoch": epoch,
        "is_best": kind == "best",
        "final": kind == "final",
        "files": [{"path": "model.pt", "size": 1, "sha256": content}],
    }


def test_the_last_checkpoint_of_an_epoch_does_not_hide_the_best_one_of_it() -> None:
    listed = [
        manifest(1, "best", 1, "a"),
        manifest(2, "best", 3, "b"),
        manifest(3, "last", 3, "c"),
        manifest(3, "last", 3, "c"),  # a repeat
    ]

    found = stored_checkpoints("run", listed)

    assert [(each.name, each.files[0].sha256, each.is_best, each.is_latest) for each in found] == [
        ("epoch-0001", "a", False, False),
        ("epoch-0003", "b", True, False),
        ("epoch-0003.2", "c", False, True),
    ]
