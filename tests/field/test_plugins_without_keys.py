"""A type of another package that needs no key, and one whose check has nothing to say."""

from __future__ import annotations

import os
from pathlib import Path

import bucket
import pytest
from peer import Peer, answer

from hubqueue.destinations.base import DestinationSettings, quiet
from hubqueue.destinations.wire.api import Api, ApiResponse
from hubqueue.destinations.wire.body import Bytes
from hubqueue.domain.outcome import Blocked
from hubqueue.worker.check import Finding, examine

CODE = """
from hubqueue.config.declaration import Destination
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.entry import Kind


class Transport:
    def send(self, batch, attempt):
        raise NotImplementedError

    def check(self):
        return RETURNED

    def close(self):
        pass


DESTINATION = Destination(
    type="bucket",
    settings=DestinationSettings,
    lanes=(Kind.CKPT,),
    identify=lambda *_: None,
    registration=lambda *_, **__: None,
    open=lambda *_: Transport(),
    secrets=(),
)
"""


def checked(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, returned: str) -> Finding:
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(
        'default_destination = "lab"\n[destinations.lab]\ntype = "bucket"\nurl = "https://lab.example"\n'
    )
    for name in [each for each in os.environ if each.startswith(("HUBQUEUE_", "HUB_API", "ULTRALYTICS_"))]:
        monkeypatch.delenv(name)
    with bucket.installed(folder, code=CODE.replace("RETURNED", returned)):
        found = examine(str(home), None, online=True, set_aside=False)
    return next(each for each in found if each.what == "destination")


def test_a_check_that_returns_nothing_is_no_failure(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checked(tmp_path, home, monkeypatch, "None")

    assert found.ok
    assert "was not checked" in found.detail


def test_a_check_that_returns_something_else_is_the_authors(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checked(tmp_path, home, monkeypatch, "True")

    assert not found.ok
    assert "bool, which is no outcome" in found.detail
    assert "author" in (found.hint or "")


def test_the_api_of_a_destination_without_secrets_needs_no_key() -> None:
    with Peer(lambda connection, _request: connection.sendall(answer())) as peer:
        api = Api(DestinationSettings("lab", "bucket", peer.url), tuple)
        found = api.ask("POST", "/x", Bytes(b"{}"), quiet())
        api.close()

    assert isinstance(found, ApiResponse)
    assert found.json is not None
    assert b"key" not in peer.requests[0].lower()


def test_a_refusal_without_a_key_holds_the_destination() -> None:
    with Peer(lambda connection, _request: connection.sendall(answer(b"{}", status="401 No"))) as peer:
        api = Api(DestinationSettings("lab", "bucket", peer.url), tuple)
        found = api.ask("POST", "/x", Bytes(b"{}"), quiet())
        api.close()

    assert isinstance(found, Blocked)
