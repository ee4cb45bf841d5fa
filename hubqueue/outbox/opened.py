"""What the readers of an opened outbox need of it: its parts, and the paths of its locks."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from hubqueue.config.config import Config
from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.outbox.addresses import Addresses
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.spool.spool import Spool
from hubqueue.outbox.stats import Stats

Transaction = Connection
"""An open transaction of an outbox."""


class Opened(Protocol):
    """An opened outbox, as `status` and `reach` read it."""

    @property
    def home(self) -> Home: ...
    @property
    def config(self) -> Config: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def database(self) -> Database: ...
    @property
    def spool(self) -> Spool: ...
    @property
    def addresses(self) -> Addresses: ...
    @property
    def stats(self) -> Stats: ...
    def run_lock(self, run_id: str) -> Path: ...
    def worker_lock(self, worker: str) -> Path: ...
    def serving_lock(self, destination: str) -> Path: ...
    def waiting_lock(self, destination: str) -> Path: ...
