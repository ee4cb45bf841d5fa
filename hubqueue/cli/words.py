"""Moments as people read them, and tables that line up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from hubqueue.cli.screen import fitted
from hubqueue.domain.quantities import span


def moment(text: str | None) -> datetime | None:
    """A moment out of the status."""
    return None if text is None else datetime.fromisoformat(text)


def when(instant: datetime) -> str:
    """A moment in local time, with its offset from UTC: 2026-11-28 17:33:10-05:00."""
    return instant.astimezone().isoformat(" ", "seconds")


def ago(text: str | None, now: datetime) -> str:
    """How long ago a moment of the status was."""
    when = moment(text)
    if when is None:
        return "never"
    passed = (now - when).total_seconds()
    return "just now" if passed < 1 else f"{span(passed)} ago"


def until(text: str | None, now: datetime) -> str:
    """How far away a moment of the status is."""
    when = moment(text)
    if when is None:
        return ""
    left = (when - now).total_seconds()
    return "now" if left < 1 else f"in {span(left)}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up, two blanks apart; the headings are dimmed on a terminal, which cuts what is too long."""
    widths = [max(len(heading), *(len(row[index]) for row in rows)) for index, heading in enumerate(headings)]
    first = "  ".join(heading.ljust(width) for heading, width in zip(headings, widths, strict=True)).rstrip()
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return fitted("\n".join([click.style(first, dim=True), *lines]))
