"""What stdout and the terminal are: how wide, which letters it knows, whether it takes anything at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from io import StringIO, TextIOWrapper

import click

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_LIKE = {"…": "...", "–": "-", "—": "-", "→": "->", "█": "#"}
_NARROWEST = 20
_ALTERNATE, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def prepare() -> None:
    """Make every text printable on any terminal, and a closed stdout an error when something is printed."""
    codecs.register_error("hubqueue", _like)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="hubqueue")
    if sys.stdout is None:  # it was closed by whoever started this
        sys.stdout = _Closed()


def give_up_stdout() -> None:
    """Nothing more can be printed; without this Python would complain once more when it ends."""
    if not isinstance(sys.stdout, _Closed):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fitted(text: str) -> str:
    """The text with each line cut to the width of the terminal; as it is where stdout is none."""
    if not sys.stdout.isatty():
        return text
    width = _size()[0]
    return "\n".join(cut(line, width) for line in text.split("\n"))


def wrapped(text: str, indent: str = "") -> str:
    """A sentence for a person, broken between words where the terminal ends."""
    if not sys.stdout.isatty():
        return indent + text
    return "\n".join(
        textwrap.wrap(
            text, _size()[0], initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
    )


def cut(line: str, width: int) -> str:
    """A line of at most `width` characters; colours count nothing and are ended."""
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


@contextlib.contextmanager
def alternate() -> Iterator[bool]:
    """The terminal's second screen, which leaves no trace behind; whether there is one."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield False
        return
    click.echo(_ALTERNATE, nl=False, color=True)
    try:
        yield True
    finally:
        click.echo(_BACK, nl=False, color=True)


def repaint(text: str) -> None:
    """Show a text in the place of the one before. What is longer than the screen loses its end, not its beginning."""
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


def _like(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_LIKE.get(each) or _escaped(each) for each in letters), error.end


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii")


class _Closed(StringIO):
    """Stands for a stdout that was closed before this process began."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
