"""The states of an entry and of a run, and the only moves between them.

The CHECK constraint of the schema, the statements of the outbox and the diagram in docs/lifecycle.md all
come from `MOVES`; a test compares them.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an entry is.

    `pending` — owed. The producer puts it here; a worker's claim makes it "in flight" (a lease on its lane,
    not a state), and a lease that ends without an answer leaves it here with the attempt charged.
    `delivered` — a validated answer proved that the hub has it. Pruned after `outbox.keep_delivered`.
    `dead` — the hub refused this very entry. It keeps its body until a person redrives or cancels it.
    `superseded` — a newer value for the same place was enqueued while this one waited.
    `cancelled` — a person gave it up.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


class Move(StrEnum):
    """What can happen to an entry. Each has exactly one method in the outbox."""

    ENQUEUE = "enqueue"
    CLAIM = "claim"
    ACK = "ack"
    RETRY = "retry"
    RELEASE = "release"
    BURY = "bury"
    SUPERSEDE = "supersede"
    CANCEL = "cancel"
    REDRIVE = "redrive"
    PRUNE = "prune"


# None is "not in the outbox". A move that several states allow has a pair for each.
MOVES: dict[Move, frozenset[tuple[State | None, State | None]]] = {
    Move.ENQUEUE: frozenset({(None, State.PENDING)}),
    Move.CLAIM: frozenset({(State.PENDING, State.PENDING)}),
    Move.ACK: frozenset({(State.PENDING, State.DELIVERED)}),
    Move.RETRY: frozenset({(State.PENDING, State.PENDING)}),
    Move.RELEASE: frozenset({(State.PENDING, State.PENDING)}),
    Move.BURY: frozenset({(State.PENDING, State.DEAD)}),
    Move.SUPERSEDE: frozenset({(State.PENDING, State.SUPERSEDED), (State.DEAD, State.SUPERSEDED)}),
    Move.CANCEL: frozenset({(State.PENDING, State.CANCELLED), (State.DEAD, State.CANCELLED)}),
    Move.REDRIVE: frozenset({(State.DEAD, State.PENDING)}),
    Move.PRUNE: frozenset({(State.DELIVERED, None), (State.SUPERSEDED, None), (State.CANCELLED, None)}),
}


class RunState(StrEnum):
    """Where a training run is.

    `running` — its process holds the run's lock. `finished` and `failed` — the script said so.
    `interrupted` — its process went away without saying anything; starting the same model again resumes it.
    """

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
