"""What a notebook displays for a run, from a status: the reason that stops its uploads first, and no foreign markup."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from hubqueue.producer.leftover import Leftover, added
from hubqueue.producer.run_page import page

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
SOON = "2026-12-01T12:01:30.000Z"
OWES = Leftover(entries=2, bytes=2000)


def shown(left: Leftover = OWES, **changes: Any) -> str:
    """The page of a run at one destination; `changes` are those of its run, lane, destination and worker."""
    lane = {"pending": 2, "in_flight": 0, "held": None, "last_error": None, "next_send_at": SOON}
    run = {
        "destination": "lab",
        "address": "lab",
        "name": None,
        "model": "resnet50.pt",
        "state": "running",
        "url": None,
        "held": None,
        "lanes": [lane | changes.get("lane", {})],
    }
    destination = {"address": "lab", "held": None, "obstacle": None, "served": True}
    found = {
        "runs": [run | changes.get("run", {})],
        "destinations": [destination | changes.get("destination", {})],
        "worker": {"alive": True, "starting": False} | changes.get("worker", {}),
    }
    return page("1dbdb0ecee53", added({"lab": left}), found, NOW, "hubqueue status --run 1dbdb0ecee53")


def test_a_run_without_debts_has_its_state_and_its_page() -> None:
    text = shown(Leftover(), run={"url": "https://hub.example/models/1", "state": "finished"})

    assert "run <code>1dbdb0ecee53</code> (resnet50.pt)" in text
    assert "to lab, finished: everything so far has arrived" in text
    assert '<a href="https://hub.example/models/1"' in text
    assert "resume=&quot;1dbdb0ecee53&quot;" in text and "!hubqueue status --run 1dbdb0ecee53" in text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "2 uploads (2.0 kB) are waiting, next in 1 min 30 s"),
        ({"lane": {"in_flight": 1, "next_send_at": None}}, "are waiting, 1 in flight<"),
        ({"lane": {"last_error": "503 Busy"}}, "are waiting, last error: 503 Busy, next in 1 min 30 s"),
        ({"lane": {"next_send_at": "2026-12-01T11:00:00.000Z"}}, "are waiting, next now<"),
        ({"destination": {"held": "the key was refused"}}, "waiting, on hold: the key was refused<"),
        ({"run": {"held": "404"}, "worker": {"alive": False}}, "waiting, on hold: 404<"),
        ({"lane": {"held": "kind 'x' is unknown"}}, "waiting, on hold: kind &#x27;x&#x27; is unknown<"),
        (
            {"destination": {"obstacle": "there is no key for lab", "served": False}},
            "not sent: there is no key for lab",
        ),
        ({"destination": {"obstacle": "there is no key for lab"}}, "are waiting, next in 1 min 30 s"),
        ({"worker": {"alive": False, "starting": True}}, "are waiting, a worker is starting<"),
        ({"worker": {"alive": False}}, "no worker is running (hubqueue drain sends them)<"),
    ],
)
def test_the_page_says_why_the_uploads_wait(changes: dict[str, Any], why: str) -> None:
    assert why in shown(**changes)


def test_what_was_refused_or_never_saved_is_on_the_page() -> None:
    left = Leftover(
        dead=1, refused={"metrics": 1}, reasons=("400 bad",), unsaved=3, unsaved_why="the disk is full"
    )

    text = shown(left)

    assert "the hub refused 1 metrics upload (400 bad); 3 could not be saved (the disk is full)" in text


def test_no_text_from_outside_becomes_markup_or_shows_a_key() -> None:
    secret = "ul_" + "0a" * 20
    text = shown(
        Leftover(entries=1, bytes=1, unsaved=1, unsaved_why="<i>"),
        run={"name": "<script>", "url": "javascript:alert(1)", "state": "<b>"},
        lane={"last_error": f"<img src=x> x-api-key: {secret}\x1b[31m"},
    )

    assert not {"<script", "<img", "<i>", "<b>", "javascript", secret, "\x1b"} & {
        word for word in ("<script", "<img", "<i>", "<b>", "javascript", secret, "\x1b") if word in text
    }
    assert "&lt;img src=x&gt;" in text


def test_a_run_whose_outbox_cannot_be_read_shows_what_the_process_knows() -> None:
    text = page(
        None, added({"lab": Leftover(unsaved=2, unsaved_why="no space")}), None, NOW, "hubqueue status"
    )

    assert "<code>not saved yet</code>" in text and "to lab: 2 could not be saved (no space)" in text
    assert "resume" not in text


def test_a_leftover_is_displayed_for_each_destination_that_something_is_owed_to() -> None:
    left = added({"lab": OWES, "done": Leftover(), "<web>": Leftover(entries=1, bytes=5, held="<b>")})

    text = left._repr_html_()

    assert "<li>to lab: 2 uploads (2.0 kB) are waiting; saved on disk</li>" in text
    assert "<li>to &lt;web&gt;: 1 upload (5 B) is waiting; on hold: &lt;b&gt;</li>" in text
    assert "done" not in text and "!hubqueue status" in text


def test_an_empty_leftover_says_that_everything_has_arrived() -> None:
    assert added({"lab": Leftover()})._repr_html_() == "<div>hubqueue: everything has arrived</div>"
