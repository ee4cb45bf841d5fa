"""What a driver's error means: a damaged file, refused values, or a storage problem.

Only an error that is known to be about the given values keeps its type. Every other error counts as a storage problem,
so the caller keeps what it wanted to save and tries again.
"""

from __future__ import annotations

from typing import NoReturn

from hubqueue.domain.errors import OutboxDamaged, OutboxLocked, OutboxUnavailable
from hubqueue.outbox.database import sqlite
from hubqueue.outbox.database.schema import DamagedNumber

# SQLSTATE classes: "data exception" and "integrity constraint violation".
_ABOUT_THE_VALUES = ("22", "23")
_LOCK_NOT_AVAILABLE = "55P03"


def translate(error: BaseException, where: object, *, in_file: bool) -> NoReturn:
    """Raise a driver's error as hubqueue's own. `where` names the outbox; `in_file` says that it is a SQLite file."""
    cause = getattr(error, "orig", None) or error
    # A driver raises UnicodeDecodeError when SQLite's message quotes damaged text.
    if isinstance(error, (DamagedNumber, UnicodeDecodeError)) or (
        in_file and (sqlite.is_damage(cause) or sqlite.is_foreign_schema(cause))
    ):
        raise OutboxDamaged(f"{where} is damaged: {cause}", hint=sqlite.SET_ASIDE) from error
    if _refuses_the_values(cause, in_file=in_file):
        raise error
    if _is_locked(cause, in_file=in_file):
        hint = "another program holds its lock: look for a stopped process, or an open transaction in a shell"
        raise OutboxLocked(f"the outbox {where} cannot be used: {cause}", hint=hint) from error
    hint = "hubqueue check finds out why"
    if sqlite.is_full(cause):
        hint = "free some space; nothing that was enqueued is lost"
    raise OutboxUnavailable(f"the outbox {where} cannot be used: {cause}", hint=hint) from error


def _is_locked(cause: BaseException, *, in_file: bool) -> bool:
    return sqlite.is_busy(cause) if in_file else getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _refuses_the_values(cause: BaseException, *, in_file: bool) -> bool:
    if in_file:
        return sqlite.refuses_the_values(cause)
    return str(getattr(cause, "sqlstate", None) or "")[:2] in _ABOUT_THE_VALUES
