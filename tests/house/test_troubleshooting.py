"""docs/troubleshooting.md has every message that asks a person to act, and no message that the program does not have.

The page quotes a message whole, with a word in capitals for each variable part. `…` replaces any text.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
from messages import HOLE, literals, messages

from hubqueue.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
# Messages that no person has to act on, each with the reason.
INTERNAL = {
    f"lane {HOLE} was claimed again after token {HOLE}": "the other worker continues",
    f"{HOLE} at {HOLE}: {HOLE}": "the reason is on the page",
    f"entry {HOLE} of run {HOLE}, {HOLE} {HOLE}: {HOLE}": "a line below `COUNT refused by the hub`",
    f"and {HOLE} more": "a line below `COUNT refused by the hub`",
    f"{HOLE} not sent: nothing to send": "the collector does not know that nothing is left then",
    f"warning: {HOLE}": "the text is on the page",
    f"{HOLE} of {HOLE}: {HOLE}, {HOLE}, verified": "the success of a pull",
    f"{HOLE} of {HOLE}: {HOLE}, {HOLE}, verified; it was here already": "the success of a pull",
    f"{HOLE} of {HOLE}: {HOLE}, {HOLE}, verified; {HOLE} of it were here already": "the success of a pull",
    "aborted": "the person has pressed Ctrl-C",
    'reading JSON such as {"train/loss": 1.2} from the terminal; Ctrl-D ends the input': "no trouble",
    "the worker stops": "the attempt does not count",
    "hubqueue check": "a next step",
    "hubqueue status": "a next step",
    "hubqueue entries --state dead": "a next step",
}
# A message may name its variable parts; this is how the page writes one.
_WORD = r"[A-Z][A-Z0-9_]*"


def quoted(page: str) -> list[str]:
    """The messages that a page quotes: the code in the first column of its tables, from the heading "Messages" on."""
    return [each for row in rows(page.partition("\n## Messages")[2]) for each in code(row[0])]


def rows(page: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = re.findall(r"^\| (.*) \|$", page, re.MULTILINE)
    return [re.split(r" *(?<!\\)\| *", line) for line in lines]


def code(cell: str) -> list[str]:
    """What a cell has in the font of code."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", cell)]


def pattern(quote: str) -> re.Pattern[str]:
    """A quoted message as a pattern for texts with holes. A hole at the end, also one in brackets, may be left out."""
    parts = re.split(rf"(…|\b{_WORD}\b)", quote)
    worded = [
        ".*" if part == "…" else rf"(?:{HOLE}|\d+|{part})" if re.fullmatch(_WORD, part) else re.escape(part)
        for part in parts
    ]
    return re.compile("".join(worded) + rf"(?:{HOLE}| \({HOLE}\))?")


def is_fixed(text: str) -> bool:
    """Whether a text has words of its own: other messages are passed through as they are."""
    return len(re.sub(rf"{HOLE}|[^A-Za-z]", "", text)) >= 2


def missing(page: str) -> list[str]:
    """The messages that a page does not quote, each with its line in the source."""
    patterns = [pattern(quote) for quote in quoted(page)]
    return [
        f"{message.where}: {message.text.replace(HOLE, '…')}"
        for message in messages()
        if is_fixed(message.text)
        and not message.text.startswith("hint: ")
        and message.text not in INTERNAL
        and not any(each.fullmatch(message.text) for each in patterns)
    ]


def obsolete(page: str) -> list[str]:
    """The quoted messages of a page that are in no text of the package."""
    known, texts = [message.text for message in messages()], literals()
    return [
        quote
        for quote in quoted(page)
        if not any(map(pattern(quote).fullmatch, known))
        and not all(part.strip() in texts for part in re.split(rf"…|\b{_WORD}\b|[():;]", quote))
    ]


def test_every_message_that_asks_a_person_to_act_is_on_the_page() -> None:
    absent = missing(PAGE.read_text())

    assert not absent, "write a row for each of them into docs/troubleshooting.md:\n" + "\n".join(absent)


def test_every_message_on_the_page_is_in_the_program() -> None:
    gone = obsolete(PAGE.read_text())

    assert not gone, "the program has no such messages any more:\n" + "\n".join(gone)


def test_a_message_without_a_row_is_found() -> None:
    page = PAGE.read_text()
    quote = "no worker could be started: REASON"

    assert quote in quoted(page)
    assert any("no worker could be started" in each for each in missing(page.replace(f"`{quote}`", "")))


def test_a_row_without_a_message_is_found() -> None:
    page = PAGE.read_text().replace("`no worker could be started: ", "`no helper could be started: ")

    assert "no helper could be started: REASON" in obsolete(page)


def test_every_command_on_the_page_can_be_run() -> None:
    advice = {each for row in rows(PAGE.read_text()) for each in code(row[-1])}
    commands = sorted(each for each in advice if re.match(r"hubqueue [a-z]", each))

    assert commands
    for each in commands:
        given = re.sub(r"\bENTRY\b", "1", each.partition(" < ")[0]).split()[1:]
        command: click.Command = main
        context = click.Context(main)
        while isinstance(command, click.Group) and given:
            name = given.pop(0)
            found = command.get_command(context, name)
            assert found is not None, each
            command = found
        command.make_context(command.name, given)


def test_every_setting_on_the_page_exists() -> None:
    page, example = PAGE.read_text(), (ROOT / "config.example.toml").read_text()
    sections = r"(?:outbox|spool|rate_limits|retry|worker|destinations\.DESTINATION)"

    named = set(re.findall(rf"`{sections}\.([a-z_]+)`", page)) - {"log"}

    assert named
    assert {each for each in named if not re.search(rf"^#{{0,2}} ?{each} = ", example, re.MULTILINE)} == set()


def test_every_exception_is_a_message() -> None:
    assert set(INTERNAL) - {message.text for message in messages()} == set()
