"""Secrets: in no row, log, reason or file, whatever the service does with them."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from hubqueue.testing.conformance.service import Fault
from hubqueue.testing.conformance.stage import Stage

_LOUD = (Fault.UNREACHABLE, Fault.ERROR, Fault.NONSENSE, Fault.BROKEN_OFF, Fault.LOST, Fault.KEY_REFUSED)


class Secrecy:
    """Tests of secrets (P9)."""

    def test_no_secret_is_written_anywhere(self, stage: Stage) -> None:
        if not stage.service.secrets:
            pytest.skip(f"the service of {stage.declared.type} needs no secrets")
        with _logged() as lines:
            run = stage.start()
            for fault in _LOUD:
                if fault in stage.service.faults:
                    stage.service.fail(fault)
                    while stage.worker.step():
                        assert stage.worker.wait_free(stage.patience), "an attempt did not end"
                    stage.service.heal()
                    stage.pass_time()
            stage.log(run, 0)
            stage.save(run, b"weights" * 1000)
            stage.end(run)
            stage.drain()
            transport = stage.transport()
            shown = [*lines, *stage.reasons(), *map(repr, stage.facts), repr(transport), repr(stage.target)]
            transport.close()
        stage.assert_arrived(run)
        stage.outbox.close()

        written = {"what is logged and shown": "\n".join(shown).encode()}
        for path in stage.home.rglob("*"):
            if path.is_file() and path.name != "credentials.toml":
                written[path.name] = path.read_bytes()
        for name, secret in stage.service.secrets.items():
            for form in _forms(secret):
                found = [where for where, data in written.items() if form in data]
                assert not found, f"the secret {name} is in {', '.join(found)}"


@contextmanager
def _logged() -> Iterator[list[str]]:
    """All lines of all logs, of every level, with the texts of exceptions."""
    lines: list[str] = []
    handler, root = logging.Handler(logging.DEBUG), logging.getLogger()
    formatter, level = logging.Formatter(), root.level
    handler.emit = lambda record: lines.append(formatter.format(record))  # type: ignore[method-assign]
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _forms(secret: str) -> set[bytes]:
    """A secret as it may be written: as it is, quoted for an address, in Base64."""
    return {secret.encode(), quote(secret, safe="").encode(), base64.b64encode(secret.encode()).rstrip(b"=")}
