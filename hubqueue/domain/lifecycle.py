"""The states of an entry and of a run, and the only moves between them.

The CHECK constraint of the schema, the statements of the outbox and the diagram in docs/lifecycle.md all
come from `MOVES`; a test compares them.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of an entry.

    `pending` — owed. An enqueue creates it in this state. A worker's claim makes it "in flight" (a lease on its lane,
    not a state); if the lease expires without a response, it stays pending and the attempt counts.
    `delivered` — a validated response proved that the hub has it. Pruned after `outbox.keep_delivered`.
    `dead` — the hub refused this entry. It keeps its body until a person redrives or cancels it.
    `superseded` — a newer entry with the same key was enqueued while this one waited.
    `cancelled` — a person gave it up.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


class Move(StrEnum):
    """What can happen to an entry. Each move has exactly one method in the outbox."""

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


# None means "not in the outbox". A move that is allowed from several states has one pair for each.
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
    """The state of a training run.

    `running` — its process holds the run's lock. `finished` and `failed` — set by the script.
    `interrupted` — its process ended without setting a state; starting the same model again resumes the run.
    """

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
