"""Text for the terminal: width, encoding, colours, tables, times, and a stdout that is closed."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import StringIO, TextIOWrapper

import click

from hubqueue.domain.quantities import span

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_SUBSTITUTES = {"…": "...", "–": "-", "—": "-", "→": "->", "█": "#"}
_NARROWEST = 20
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def prepare() -> None:
    """Make every text printable in any encoding. Make a write to a closed stdout an error."""
    codecs.register_error("hubqueue", _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="hubqueue")
    if sys.stdout is None:  # the parent process has closed it
        sys.stdout = _Closed()


def discard_stdout() -> None:
    """Drop all further output. Otherwise Python reports the failed write again at exit."""
    if not isinstance(sys.stdout, _Closed):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def visible(text: str) -> str:
    """A text whose control characters are shown as escapes: a path may have a line break in its name."""
    return "".join(repr(each)[1:-1] if unicodedata.category(each) == "Cc" else each for each in text)


def fit(text: str) -> str:
    """The text, each line cut to the width of the terminal. Unchanged if stdout is no terminal."""
    if not sys.stdout.isatty():
        return text
    width = _size()[0]
    return "\n".join(cut(line, width) for line in text.split("\n"))


def wrap(text: str, indent: str = "") -> str:
    """A sentence, wrapped between words at the width of the terminal."""
    if not sys.stdout.isatty():
        return indent + text
    return "\n".join(
        textwrap.wrap(
            text, _size()[0], initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
    )


def cut(line: str, width: int) -> str:
    """A line of at most `width` visible characters. Colours are reset at the cut."""
    if len(_ESCAPE.sub("", line)) <= width:
        return line
    kept, room, at = [], width - 1, 0
    for escape in (*_ESCAPE.finditer(line), None):
        words = line[at : escape.start() if escape else len(line)]
        kept.append(words[:room])
        room -= len(words[:room])
        if escape is None or room == 0:
            break
        kept.append(escape.group())
        at = escape.end()
    return "".join(kept).rstrip() + "…" + ("\x1b[0m" if "\x1b" in line else "")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, two blanks apart. On a terminal the headings are dimmed and long lines are cut."""
    widths = [max(len(heading), *(len(row[index]) for row in rows)) for index, heading in enumerate(headings)]
    first = "  ".join(heading.ljust(width) for heading, width in zip(headings, widths, strict=True)).rstrip()
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return fit("\n".join([click.style(first, dim=True), *lines]))


def local_time(instant: datetime) -> str:
    """A time in the local zone, with its offset from UTC: 2026-11-28 17:33:10-05:00."""
    return instant.astimezone().isoformat(" ", "seconds")


def parse_time(text: str | None) -> datetime | None:
    """A time of the status."""
    return None if text is None else datetime.fromisoformat(text)


def ago(text: str | None, now: datetime) -> str:
    """How long ago a time of the status was."""
    instant = parse_time(text)
    if instant is None:
        return "never"
    passed = (now - instant).total_seconds()
    return "just now" if passed < 1 else f"{span(passed)} ago"


def until(text: str | None, now: datetime) -> str:
    """How long it is until a time of the status."""
    instant = parse_time(text)
    if instant is None:
        return ""
    left = (instant - now).total_seconds()
    return "now" if left < 1 else f"in {span(left)}"


@contextlib.contextmanager
def alternate_screen() -> Iterator[bool]:
    """Switch to the terminal's alternate screen and back; yields whether the terminal has one."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield False
        return
    click.echo(_ENTER, nl=False, color=True)
    try:
        yield True
    finally:
        click.echo(_LEAVE, nl=False, color=True)


def repaint(text: str) -> None:
    """Replace the text on the screen. A text longer than the screen loses its end, so the headline stays visible."""
    width, height = _size()
    lines = [cut(line, width) for line in text.split("\n")]
    if len(lines) > height:
        lines = [*lines[: height - 1], cut("… (the window is too small for the rest)", width)]
    if click.get_current_context().color is False:
        lines = [click.unstyle(line) for line in lines]
    click.echo("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J", nl=False, color=True)


def _size() -> tuple[int, int]:
    columns, lines = shutil.get_terminal_size()
    return max(_NARROWEST, columns), max(3, lines)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(each) or _escape(each) for each in characters), error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


class _Closed(StringIO):
    """Replaces a stdout that was closed before this process started."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
