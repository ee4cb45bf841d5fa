"""Repeats: a kill at any step of any attempt loses nothing and stores nothing twice; an upload that was broken off continues."""

from __future__ import annotations

import pytest

from hubqueue.destinations.base import Kind
from hubqueue.domain.lifecycle import State
from hubqueue.testing.child import Plan
from hubqueue.testing.conformance.deliveries import FOLDER
from hubqueue.testing.conformance.stage import Stage
from hubqueue.testing.forks import work

_MOST_KILLS = 100


class Repeats:
    """Tests of repeats (P7, P12).

    `resumes`: the destination must continue an upload that was broken off. That one has `upload` bytes.
    """

    resumes = False
    upload = 5_600_000

    def test_a_kill_at_any_step_loses_and_repeats_nothing(self, stage: Stage) -> None:
        """Process after process sends the training; each is killed at a step at which none was killed before."""
        run = stage.start()
        stage.log(run, 0, 1)
        stage.save(run, FOLDER if stage.declared.takes_folders else b"weights" * 100_000)
        stage.end(run)
        stage.worker.stop()

        killed: set[str] = set()
        for _ in range(_MOST_KILLS):
            done = work(Plan(stage.home, stage.environ, stage.clock.elapsed() - 1000, frozenset(killed)))
            stage.assert_proven()
            stage.whole(run)
            if done.killed_at is None:
                break
            killed.add(done.killed_at)
            stage.pass_time()

        assert stage.count(State.PENDING) == 0, f"still owed: {stage.reasons()}"
        assert any("settled" in each for each in killed), f"killed only at: {killed}"
        stage.assert_arrived(run)

    def test_a_broken_off_upload_continues(self, stage: Stage) -> None:
        """A worker is killed when it has sent more than half and stored its progress: another one sends only the rest."""
        stage.needs(Kind.CKPT)
        run = stage.start()
        stage.drain()
        content: bytes | dict[str, bytes] = b"weights!" * (self.upload // 8)
        if stage.declared.takes_folders:
            content = {f"part-{number}.bin": bytes([number]) * (self.upload // 8) for number in range(4)}
            content["the-rest.bin"] = b"weights!" * (self.upload // 16)
        stage.save(run, content)
        stage.worker.stop()

        passed = stage.clock.elapsed() - 1000
        done = work(Plan(stage.home, stage.environ, passed, kill_after=self.upload // 2))
        if done.killed_at is None and not self.resumes:
            pytest.skip(f"{stage.declared.type} stores no progress of an upload")
        assert done.killed_at is not None, "no progress was stored: attempt.on_progress"
        stage.pass_time()
        stage.restart()
        stage.drain()

        stage.assert_arrived(run)
        stage.assert_clear()
        arrived = stage.received(run).upload_bytes
        if arrived is not None:
            assert arrived < 1.4 * self.upload, "the upload was sent again from its beginning"
