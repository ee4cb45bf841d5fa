"""The HTML that a notebook shows for a run."""

from __future__ import annotations

from html import escape

from hubqueue.domain.redact import link
from hubqueue.producer.leftover import Leftover, describe


def run_page(run_id: str | None, destination: str, url: str | None, left: Leftover) -> str:
    """A run as one line of HTML: its link, what has not arrived yet, and how to continue it. `destination` may name several."""
    name, address = escape(run_id or "not saved yet"), link(url)
    shown = f'<a href="{escape(address)}">{name}</a>' if address else f"<code>{name}</code>"
    owed = escape(describe(left)) if left else "everything so far has arrived"
    again = f"; continue it with <code>resume=&quot;{name}&quot;</code>" if run_id else ""
    return f"<div>hubqueue run {shown} to {escape(destination)}: {owed}{again}</div>"
