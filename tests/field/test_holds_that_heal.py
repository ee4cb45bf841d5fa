"""What was refused for a minute is accepted again: nobody has to come, and the hub is not flooded meanwhile."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import template
from peer import GOOD, Peer, answer
from sqlalchemy import update
from stage import (
    PACES,
    PATIENCE,
    TERMS,
    ZERO,
    ckpt,
    claim,
    environ_of,
    hubqueue,
    log,
    must_claim,
    new_run,
    python,
    save_snapshot,
    start_worker,
    totals,
    wait_until,
)
from torture import tls

from hubqueue.cli.status_text import status_text
from hubqueue.destinations.hub.registration import registration_draft
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.outcome import Remote, Scope
from hubqueue.outbox.database.schema import destinations
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker import events
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.worker import Worker

REFUSED = b'{"message": "no"}'


class Hub:
    """A hub that refuses with `status` while it is set; `keys` are the keys that it knows (None: all)."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.keys: tuple[bytes, ...] | None = None
        self.only: bytes = b""

    def act(self, connection: socket.socket, request: bytes) -> None:
        known = self.keys is None or any(b"x-api-key: " + key in request.lower() for key in self.keys)
        refuses = self.status is not None and self.only in request
        if known and not refuses:
            connection.sendall(answer())
        else:
            connection.sendall(answer(REFUSED, status=self.status if refuses and self.status else "403 No"))


@pytest.fixture
def hub_() -> Hub:
    return Hub()


@pytest.fixture
def peer(hub_: Hub) -> Iterator[Peer]:
    with Peer(hub_.act) as opened:
        yield opened


class Stage:
    """A home, and workers that a test steps."""

    def __init__(self, home: Path, clock: FakeClock, url: str, **settings: str) -> None:
        template.lay(home)
        self.clock, self.facts = clock, list[events.Fact]()
        environ = {"HUB_API_KEY": "key-of-the-tests", "ULTRALYTICS_HUB_API": url, **settings}
        environ = {"HUBQUEUE_RATE_LIMITS__HEARTBEAT": "100000", "HUBQUEUE_RATE_LIMITS__CKPT": "0", **environ}
        self._open: Callable[[], Outbox] = lambda: open_outbox(home, environ=environ, clock=clock)
        self.outbox = self._open()
        self.outbox.note_destinations()
        self.worker = self.another()

    def another(self, outbox: Outbox | None = None) -> Worker:
        worker = Worker(outbox or self.outbox, emit=self.facts.append)
        worker.start()
        return worker

    def step(self, worker: Worker | None = None) -> None:
        (worker or self.worker).step()
        assert (worker or self.worker).wait_free(PATIENCE), "an attempt did not end"

    def pass_time(self, seconds: float, *, every: float = 10.0) -> None:
        """Let this time pass, in steps, as a worker that is alive."""
        janitor = Janitor(self.outbox, self.facts.append)
        for _ in range(int(seconds / every)):
            self.clock.advance(every)
            janitor.scan()
            self.step()

    @property
    def held(self) -> list[str]:
        shown = self.outbox.status()
        return [each["held"] for each in (*shown["destinations"], *shown["runs"]) if each["held"]]

    def close(self) -> None:
        self.worker.stop(ZERO)
        self.outbox.close()


@pytest.fixture
def at(home: Path, clock: FakeClock, peer: Peer) -> Iterator[Stage]:
    stage = Stage(home, clock, peer.url)
    yield stage
    stage.close()


@pytest.mark.parametrize(
    "status",
    [
        *("401 No", "402 Pay", "404 No", "410 Gone"),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("403 No", "405 No")),
    ],
)
def test_a_hub_that_refuses_for_a_minute_gets_everything_afterwards(
    status: str, at: Stage, hub_: Hub
) -> None:
    hub_.status = status
    for _ in range(3):
        log(at.outbox, new_run(at.outbox, remote_id=f"m{_}"), 0, 1, 2)
    at.step()
    during = at.held
    hub_.status = None

    at.pass_time(120)

    assert during
    assert at.held == []
    assert totals(at.outbox) == {"enqueued": 9, "delivered": 9}
    assert any(isinstance(fact, events.HoldLifted) for fact in at.facts)


def test_a_hold_probes_less_and_less_often_and_burns_no_attempt(at: Stage, hub_: Hub, peer: Peer) -> None:
    hub_.status = "401 No"
    for number in range(5):
        log(at.outbox, new_run(at.outbox, remote_id=f"m{number}"), 0)
    at.step()
    first = len(peer.requests)

    at.pass_time(3600, every=30)
    hour = len(peer.requests) - first
    at.pass_time(24 * 3600, every=300)
    day = len(peer.requests) - first - hour

    # Doubling from one minute: 1, 2, 4, … 32 minutes, then one an hour.
    assert 5 <= hour <= 8
    assert 20 <= day <= 26
    assert len(at.held) == 1
    assert {row["attempts"] for row in at.outbox.stats.entries()} == {0}
    assert totals(at.outbox) == {"enqueued": 5, "pending": 5}


def test_restarts_and_several_workers_make_no_more_probes(
    at: Stage, hub_: Hub, peer: Peer, clock: FakeClock
) -> None:
    hub_.status = "401 No"
    for number in range(5):
        log(at.outbox, new_run(at.outbox, remote_id=f"m{number}"), 0)
    at.step()
    first = len(peer.requests)

    for _ in range(4):  # a new worker every 20 s, and each twice
        clock.advance(20)
        for _ in range(2):
            with at._open() as other:
                worker = at.another(other)
                at.step(worker)
                at.step(at.worker)
                worker.stop(ZERO)

    assert len(peer.requests) - first == 1


def test_two_workers_that_are_due_at_once_make_one_probe(
    at: Stage, hub_: Hub, peer: Peer, clock: FakeClock
) -> None:
    hub_.status = "401 No"
    for number in range(8):
        log(at.outbox, new_run(at.outbox, remote_id=f"m{number}"), 0)
    at.step()
    first = len(peer.requests)
    with at._open() as other:
        second = at.another(other)
        clock.advance(61)
        threads = [threading.Thread(target=each.step) for each in (at.worker, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert at.worker.wait_free(PATIENCE)
        assert second.wait_free(PATIENCE)
        second.stop(ZERO)

    assert len(peer.requests) - first == 1


def test_a_probe_whose_worker_is_killed_is_not_repeated_at_once(
    at: Stage, hub_: Hub, peer: Peer, clock: FakeClock
) -> None:
    hub_.status = "401 No"
    log(at.outbox, new_run(at.outbox), 0)
    at.step()
    clock.advance(61)
    pool = at.worker._pools[0]
    lease = at.outbox.claims.claim(pool.destination, pool.paces, pool.terms)  # and its worker dies here
    assert lease is not None
    assert lease.probe is not None
    at.outbox.claims.reclaim([at.worker.id])
    before = len(peer.requests)

    at.step()

    assert len(peer.requests) == before


def test_the_next_key_is_tried_after_a_403(home: Path, clock: FakeClock, hub_: Hub, peer: Peer) -> None:
    hub_.keys = (b"key-that-is-right",)
    at = Stage(home, clock, peer.url, HUB_API_KEY="key-that-is-wrong")
    at.outbox.credentials.store(at.outbox.config.destination("hub"), "key-that-is-right")
    log(at.outbox, new_run(at.outbox), 0)
    at.worker.scan()

    at.pass_time(10, every=2)

    assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}
    assert at.held == []
    at.close()


def test_a_key_that_the_hub_accepts_again_among_two_is_found(
    home: Path, clock: FakeClock, hub_: Hub, peer: Peer
) -> None:
    hub_.keys = ()
    at = Stage(home, clock, peer.url, HUB_API_KEY="key-that-is-wrong")
    at.outbox.credentials.store(at.outbox.config.destination("hub"), "key-that-is-right")
    log(at.outbox, new_run(at.outbox), 0)
    at.worker.scan()
    at.pass_time(30)
    during = at.held
    hub_.keys = (b"key-that-is-right",)

    at.pass_time(150)  # the probe tries the first key; the next one follows at once, not at the next probe

    assert during
    assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}
    at.close()


def test_a_lane_that_is_refused_for_its_own_reason_does_not_lift_and_hold_in_turn(
    at: Stage, hub_: Hub, peer: Peer
) -> None:
    """The registration of one run is refused: probes of other lanes would lift that hold again and again."""
    hub_.status, hub_.only = "404 No", b"POST /v1/models HTTP"
    run_id = new_run(at.outbox, remote_id=None)
    at.outbox.entries.enqueue(run_id, registration_draft("yolov8n.pt", {}))
    at.step()
    log(at.outbox, new_run(at.outbox, remote_id="m2"), 0)

    at.pass_time(3600, every=30)

    assert len(at.held) == 1
    assert 4 <= len([each for each in peer.requests if each.startswith(b"POST /v1/models HTTP")]) <= 8
    hub_.status = None
    at.pass_time(3700, every=30)
    assert at.held == []
    assert "pending" not in totals(at.outbox)


def test_a_hold_whose_entry_was_cancelled_still_heals(at: Stage, hub_: Hub) -> None:
    hub_.status = "401 No"
    first = new_run(at.outbox, remote_id="m1")
    (entry,) = log(at.outbox, first, 0)
    at.step()
    at.outbox.entries.cancel(ids=[entry])
    at.outbox.registry.end_run(first, RunState.FINISHED)
    log(at.outbox, new_run(at.outbox, remote_id="m2"), 0)
    hub_.status = None

    at.pass_time(180)

    assert at.held == []
    assert totals(at.outbox) == {"enqueued": 2, "delivered": 1, "cancelled": 1}


def test_a_probe_of_a_large_checkpoint_sends_it_only_when_the_key_is_accepted(
    at: Stage, hub_: Hub, peer: Peer, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(bytes(3_000_000))
    run_id = new_run(at.outbox)
    at.outbox.registry.end_run(run_id, RunState.FINISHED)
    save_snapshot(at.outbox, run_id, Checkpoint(path, 0, is_best=True, map=0.5, final=True))
    hub_.status = "401 No"
    at.step()
    whole = [len(each) > 3_000_000 for each in peer.requests]
    at.pass_time(3600, every=30)
    probes = peer.requests[len(whole) :]
    hub_.status = None
    at.pass_time(3700, every=30)

    assert whole == [True]
    assert probes
    assert all(each.startswith(b"POST /v1/auth ") for each in probes)
    assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}


def test_an_outage_during_a_hold_neither_lifts_it_nor_counts(at: Stage, hub_: Hub, peer: Peer) -> None:
    hub_.status = "401 No"
    log(at.outbox, new_run(at.outbox), 0)
    at.step()
    hub_.status = "503 Down"
    at.pass_time(600)
    during = at.held
    hub_.status = None
    at.pass_time(1200)

    assert len(during) == 1
    assert "401" in during[0]
    assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}


def test_the_status_says_when_a_hold_probes_again_and_resume_lifts_it_at_once(
    at: Stage, hub_: Hub, clock: FakeClock
) -> None:
    hub_.status = "401 No"
    log(at.outbox, new_run(at.outbox), 0)
    at.step()
    shown = at.outbox.status()
    text = status_text(shown, at.outbox.database.to_wall(at.outbox.database.now()))
    hub_.status = None
    at.outbox.registry.resume("hub")
    clock.advance(4)  # the limit of metrics
    at.step()

    assert shown["destinations"][0]["probes_at"] is not None
    assert shown["destinations"][0]["resumes_at"] is None
    assert all(lane["next_send_at"] is None for lane in shown["runs"][0]["lanes"])
    assert "ON HOLD: the key was refused" in text
    assert "probes again in " in text
    assert at.outbox.status()["destinations"][0]["probes_at"] is None
    assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}


def test_a_wait_that_the_hub_asked_for_outlives_a_probe_that_gets_through(
    at: Stage, hub_: Hub, clock: FakeClock
) -> None:
    hub_.status = "401 No"
    log(at.outbox, new_run(at.outbox, remote_id="m1"), 0)
    at.step()
    later = at.outbox.database.now() + timedelta(seconds=600)
    with at.outbox.database.write() as tx:
        tx.execute(update(destinations).values(resumes_at=later))
    hub_.status = None

    at.pass_time(500)
    before = at.held
    at.pass_time(200)

    assert len(before) == 1
    assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}


def test_a_run_that_the_hub_does_not_know_for_a_while_holds_no_neighbour_and_heals(
    at: Stage, hub_: Hub, peer: Peer
) -> None:
    hub_.status, hub_.only = "404 No", b"/v1/models/gone"
    gone, other = new_run(at.outbox, remote_id="gone"), new_run(at.outbox, remote_id="other")
    log(at.outbox, gone, 0)
    log(at.outbox, other, 0)
    at.step()
    shown = {run["id"]: run for run in at.outbox.status()["runs"]}
    at.pass_time(6 * 3600, every=180)
    probes = len([each for each in peer.requests if b"/v1/models/gone" in each])
    hub_.status = None
    at.pass_time(2 * 3600, every=180)

    assert shown[gone]["held"]
    assert shown[gone]["probes_at"]
    assert shown[other]["held"] is None
    assert probes < 20
    assert totals(at.outbox) == {"enqueued": 2, "delivered": 2}


def test_a_certificate_that_becomes_valid_lifts_its_hold(
    home: Path, clock: FakeClock, tmp_path: Path
) -> None:
    authority, now = tls._Authority("ours"), datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    trusted = authority.write(tmp_path / "trusted.pem")
    early = authority.sign("localhost", begin=now + day, end=now + 9 * day)
    contexts = {"now": tls._context(tmp_path, *early)}
    received: list[bytes] = []
    with secure_hub(contexts, received) as port:
        at = Stage(
            home,
            clock,
            f"https://localhost:{port}",
            HUBQUEUE_DESTINATIONS__HUB__CA_BUNDLE=str(trusted),
        )
        log(at.outbox, new_run(at.outbox), 0)
        at.step()
        during = at.held
        contexts["now"] = tls._context(tmp_path, *authority.sign("localhost"))

        at.pass_time(150)

        assert "certificate refused" in during[0]
        assert at.held == []
        assert totals(at.outbox) == {"enqueued": 1, "delivered": 1}
        at.close()


class secure_hub:
    """A hub over TLS whose certificate a test replaces. Returns its port."""

    def __init__(self, contexts: dict[str, ssl.SSLContext], received: list[bytes]) -> None:
        self._contexts, self._received = contexts, received
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_error: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection, self._contexts["now"].wrap_socket(connection, server_side=True) as secure:
                while request := tls._request(secure):
                    self._received.append(request)
                    secure.sendall(answer(GOOD))
        except OSError:
            return


def test_a_worker_of_its_own_waits_for_the_hub_beyond_its_idle_exit(
    migrated_home: Path, hub: Sandbox
) -> None:
    environ = environ_of(migrated_home, hub.url, HUBQUEUE_WORKER__IDLE_EXIT="0.5", HUBQUEUE_RETRY__PROBE="2")
    hub.fail("any:401")
    script = (
        "import hubqueue\n"
        "run = hubqueue.start_run('yolov8n.pt', worker='none')\n"
        "run.log_metrics({'loss': 1.0}, epoch=0)\n"
        "run.finish(timeout=0)\n"
    )
    python(script, environ).communicate(timeout=PATIENCE)
    worker = start_worker(environ, "--idle-exit", "0.5")
    try:
        wait_until(lambda: "ON HOLD" in hubqueue(environ, "status").stdout)
        hub.heal()

        wait_until(lambda: "all uploaded" in hubqueue(environ, "status").stdout)
        assert worker.wait(PATIENCE) == 0
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()


# The moves, on every database.


def test_a_hold_is_probed_by_one_lane_at_a_time_on_every_database(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    for number in range(3):
        log(any_outbox, new_run(any_outbox, remote_id=f"m{number}"), 0)
    held = must_claim(any_outbox)
    seen = must_claim(any_outbox)
    for lease in (held, seen):
        any_outbox.settlement.release(
            lease, reason="refused", started_at=lease.claimed_at, hold=Scope.DESTINATION
        )
    at_once = claim(any_outbox)
    clock.advance(61)
    probe, another = must_claim(any_outbox), claim(any_outbox)
    any_outbox.settlement.release(
        probe, reason="still refused", started_at=probe.claimed_at, hold=Scope.DESTINATION
    )
    clock.advance(62)
    second = must_claim(any_outbox)
    any_outbox.settlement.ack(second, started_at=second.claimed_at, remote=Remote())
    lifted = any_outbox.settlement.lift(second)

    assert at_once is None
    assert another is None
    assert probe.probe is not None
    assert probe.probe.reason == "refused"
    assert second.probe is not None
    assert second.lane_id == probe.lane_id, "only this lane has met the newest reason"
    assert lifted
    assert {must_claim(any_outbox).probe for _ in range(2)} == {None}
    assert totals(any_outbox)["delivered"] == 1


def test_lanes_are_appointed_where_none_has_met_the_reason_on_every_database(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    first, second = (new_run(any_outbox, remote_id=f"m{number}") for number in range(2))
    log(any_outbox, first, 0)
    lease = must_claim(any_outbox)
    any_outbox.settlement.release(lease, reason="gone", started_at=lease.claimed_at, hold=Scope.DESTINATION)
    any_outbox.entries.cancel(run_id=first)
    any_outbox.registry.end_run(first, RunState.FINISHED)
    log(any_outbox, second, 0)
    clock.advance(61)

    before, appointed, after = claim(any_outbox), any_outbox.registry.appoint_probes(), claim(any_outbox)

    assert before is None
    assert appointed == 1
    assert after is not None
    assert any_outbox.registry.appoint_probes() == 0


@pytest.mark.parametrize("scope", [Scope.DESTINATION, Scope.RUN])
def test_a_probe_that_fails_on_this_machine_leaves_the_next_one_to_what_also_waits(
    any_outbox: Outbox, clock: FakeClock, scope: Scope
) -> None:
    """A key was refused when a checkpoint was sent. Now the disk of the spool is away, and the key is accepted again."""
    run_id = new_run(any_outbox)
    ckpt(any_outbox, run_id, "last")
    held = must_claim(any_outbox, Kind.CKPT)
    log(any_outbox, run_id, 0)
    any_outbox.settlement.release(held, reason="refused", started_at=held.claimed_at, hold=scope)
    clock.advance(901)  # the limit of checkpoints

    probe, other = must_claim(any_outbox, Kind.CKPT), claim(any_outbox, Kind.METRICS)
    later = any_outbox.database.now() + timedelta(seconds=120)
    any_outbox.settlement.still_held(probe, reason="the spool is not there", at=later, started_at=None)
    clock.advance(1000)
    next_one = must_claim(any_outbox)

    assert probe.probe is not None and other is None
    assert next_one.batch.kind is Kind.METRICS
    assert next_one.probe is not None and next_one.probe.scope is scope


def test_a_run_on_hold_is_probed_and_lifted_on_every_database(any_outbox: Outbox, clock: FakeClock) -> None:
    run_id = new_run(any_outbox)
    log(any_outbox, run_id, 0)
    ckpt(any_outbox, run_id, "last")
    held = must_claim(any_outbox, Kind.METRICS)
    other = must_claim(any_outbox, Kind.CKPT)
    for lease in (held, other):
        any_outbox.settlement.release(lease, reason="unknown", started_at=lease.claimed_at, hold=Scope.RUN)
    at_once = claim(any_outbox)
    clock.advance(61)
    probe = must_claim(any_outbox, Kind.METRICS)
    any_outbox.settlement.ack(probe, started_at=probe.claimed_at, remote=Remote())
    any_outbox.settlement.lift(probe)

    assert at_once is None
    assert probe.probe is not None
    assert probe.probe.scope is Scope.RUN
    clock.advance(900)  # the limit of checkpoints
    assert must_claim(any_outbox, Kind.CKPT).probe is None


def test_a_hold_that_a_heartbeat_has_met_is_probed_by_what_waits(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    """The next heartbeat is due in five minutes, and never if the run ends."""
    log(any_outbox, new_run(any_outbox), 0)
    lease = any_outbox.claims.claim("hub", {Kind.HEARTBEAT: timedelta(seconds=300)}, TERMS)
    assert lease is not None
    any_outbox.settlement.release(
        lease, reason="refused", started_at=lease.claimed_at, hold=Scope.DESTINATION
    )

    clock.advance(61)

    assert must_claim(any_outbox, Kind.METRICS).probe is not None


def test_two_claims_at_the_same_moment_take_one_probe(any_outbox: Outbox, clock: FakeClock) -> None:
    for number in range(2):
        log(any_outbox, new_run(any_outbox, remote_id=f"m{number}"), 0)
    for lease in [must_claim(any_outbox) for _ in range(2)]:
        any_outbox.settlement.release(
            lease, reason="refused", started_at=lease.claimed_at, hold=Scope.DESTINATION
        )
    clock.advance(61)
    found: list[object] = []
    second = threading.Thread(target=lambda: found.append(claim(any_outbox)))
    with any_outbox.database.write() as tx:
        first = any_outbox.claims.claim("hub", PACES, TERMS, within=tx)
        second.start()
        threading.Event().wait(
            0.5
        )  # on PostgreSQL it reads the row of the hold before the first claim is committed
    second.join(PATIENCE)

    assert first is not None
    assert found == [None]
