"""A package with a destination that takes steps, and a home whose runs go to it. Its entries are sent by a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import bucket

CODE = """
from hubqueue.config.declaration import Destination
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.entry import Kind
from hubqueue.domain.identifier import Identifier


def _open(*_given):
    raise NotImplementedError


DESTINATION = Destination(
    type="bucket",
    settings=DestinationSettings,
    lanes=(Kind.METRICS, Kind.CKPT),
    identify=lambda model, _settings: Identifier(filename=model),
    registration=lambda *_, **__: None,
    open=_open,
    secrets=(),
    takes_steps=True,
    takes_folders=True,
)
"""
# `ours` takes steps, `hub` only epochs.
CONFIG = """
default_destination = "DEFAULT"
[destinations.ours]
type = "bucket"
url = "http://127.0.0.1:9"
[destinations.hub]
type = "hub"
url = "http://127.0.0.1:9"
"""


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """Install the package for the duration of the context; returns a folder for PYTHONPATH."""
    folder.mkdir()
    with bucket.installed(folder, code=CODE) as path:
        yield path


def configure(home: Path, default: str = "ours") -> None:
    """Write the configuration of a home."""
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "config.toml").write_text(CONFIG.replace("DEFAULT", default))
    (home / "config.toml").chmod(0o600)
