"""What a driver's error means: a damaged file, values that were refused, or trouble of the storage.

Only what is known to be about the given values stays as it is. Every other error, known or not, is the storage's, so
whoever wanted to save something keeps it and tries again.
"""

from __future__ import annotations

from typing import NoReturn

from hubqueue.domain.errors import OutboxDamaged, OutboxUnavailable
from hubqueue.outbox.database import sqlite
from hubqueue.outbox.database.schema import DamagedNumber

# SQLSTATE classes: "data exception" and "integrity constraint violation".
_ABOUT_THE_VALUES = ("22", "23")


def translate(error: BaseException, where: object, *, in_file: bool) -> NoReturn:
    """Raise a driver's error as hubqueue's own. `where` names the outbox, which is SQLite's when it is `in_file`."""
    cause = getattr(error, "orig", None) or error
    # The second is what a driver makes of a message of SQLite's with damaged text in it.
    if isinstance(error, (DamagedNumber, UnicodeDecodeError)) or (
        in_file and (sqlite.is_damage(cause) or sqlite.is_foreign_schema(cause))
    ):
        raise OutboxDamaged(f"{where} is damaged: {cause}", hint=sqlite.SET_ASIDE) from error
    if _refuses_the_values(cause, in_file=in_file):
        raise error
    hint = "hubqueue check finds out why"
    if sqlite.is_full(cause):
        hint = "free some space; nothing that was enqueued is lost"
    raise OutboxUnavailable(f"the outbox {where} cannot be used: {cause}", hint=hint) from error


def _refuses_the_values(cause: BaseException, *, in_file: bool) -> bool:
    if in_file:
        return sqlite.refuses_the_values(cause)
    return str(getattr(cause, "sqlstate", None) or "")[:2] in _ABOUT_THE_VALUES
