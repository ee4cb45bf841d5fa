"""Names of destinations, of keys in the file and of environment variables: which are valid, and which are not read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from hubqueue.domain.redact import clean

NAME, LONGEST_NAME = r"[a-z0-9]+([-_][a-z0-9]+)*", 40
"""Valid names of destinations, as a regular expression and a length: they must fit into the name of a variable."""
PREFIX = "HUBQUEUE_"
_SECRET = re.compile(r"key$|token|passw(or)?d|secret|credential|^auth$")
_KEY = f"{PREFIX}KEY_"
# Read besides the settings and the keys. The last two tell a child process its run, or that it is a worker.
_OTHERS = ("HUBQUEUE_HOME", "HUBQUEUE_CONFIG", "HUBQUEUE_RUN", "HUBQUEUE_IS_WORKER")


def variable(*path: str) -> str:
    """The environment variable that overrides a setting: `variable("destinations", "lab", "url")`."""
    return PREFIX + "__".join(part.replace("-", "_").upper() for part in path)


def looks_secret(name: str) -> bool:
    """Whether a setting's name is that of a secret, in any spelling."""
    return _SECRET.search(re.sub(r"[-_]", "", name.lower())) is not None


def own_variable(destination: str, further: str = "") -> str:
    """The variable with the key of a destination: `HUBQUEUE_KEY_LAB`. With a `further` secret: `HUBQUEUE_SECRET_LAB`."""
    start = f"{PREFIX}{further.upper()}_" if further else _KEY
    return start + re.sub(r"[^A-Z0-9]", "_", destination.upper())


def unread(
    environ: Mapping[str, str], destinations: Iterable[str], further: Iterable[str] = ()
) -> tuple[str, ...]:
    """The `HUBQUEUE_…` variables that hubqueue does not read, with the reason, a line each; never their values.

    They may belong to another program, so this is not an error. Names with two underscores are left to the reader, which
    refuses those without a setting. `further` are the variables of secrets besides the keys.
    """
    keys = [own_variable(each) for each in destinations]
    others = [*further, *_OTHERS, variable("default_destination")]
    found = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and "__" not in name and name not in (*keys, *others) and environ[name]:
            is_key = name.startswith(_KEY)
            why = "no destination has this name" if is_key else "hubqueue does not read it"
            guess = _nearest(name, _KEY, keys) if is_key else _nearest(name, PREFIX, others)
            found.append(f"{clean(name, limit=100)} is set, but {why}{guess}")
    return tuple(found)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean '…'?` with the known word closest to `word`, ignoring case; empty if none is close."""
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _nearest(name: str, start: str, known: Iterable[str]) -> str:
    """A guess of what was meant, from the part after the common start."""
    rests = [each.removeprefix(start) for each in known]
    close = difflib.get_close_matches(name.removeprefix(start), rests, n=1)
    return f"; did you mean {start}{close[0]}?" if close else ""
