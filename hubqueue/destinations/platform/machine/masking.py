"""Texts about a person's machine, made safe to send: keys masked, private parts of addresses left out.

Promises one line of bounded length each. A key is masked if it is known to this process, has the form of a vendor's
key, follows a name such as `token`, or is an unbroken word of 20 and more mixed letters and digits. In doubt a
harmless word is masked. The home folder becomes `~`, since its name is often the name of a person.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

from hubqueue.domain.arguments import is_secret_name
from hubqueue.domain.redact import MASK, clean, hide_key, hide_known, safe_url

# Characters of a text that are sent, and of the text that is searched for keys.
_LONGEST_COMMAND, _LONGEST_TEXT = 2000, 200
_SEARCHED = 8 * 1024
_LONGEST_WORD = 1024
_MOST_SECRETS, _MOST_CONTAINERS = 64, 500

_FORMS = re.compile(
    r"(?<![0-9A-Za-z])(?:gh[opsur]_|github_pat_|glpat-|hf_|sk-|pk-|xox[a-z]-|AKIA|ASIA|AIza|eyJ|npm_|pypi-|dckr_pat_|r8_)"
    r"[0-9A-Za-z._~+/=-]{8,}"
)
_RANDOM = re.compile(r"(?<![0-9A-Za-z])(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[0-9A-Za-z]{20,}(?![0-9A-Za-z])")
_URL = re.compile(r"(?<![0-9A-Za-z])[A-Za-z][0-9A-Za-z+.-]{0,30}://[^\s\"'<>]+")
# user:password@host without a scheme
_LOGIN = re.compile(r"(?<![^\s/@:\"'=,;(])[^\s/@:\"'=]{1,80}:[^\s/@\"']{1,300}@(?=[0-9A-Za-z])")
# name=value and name: value anywhere, and --name value inside a quoted command
_PAIR = re.compile(
    r"(?<![\w.-])[+-]*(?P<name>\w[\w.-]{0,80})(?P<means>[\"']?\s?[=:]\s?[\"']?)(?P<value>[^\s\"',;&}\]]+)"
)
_OPTION = re.compile(
    r"(?<![^\s\"'\[(,])--?(?P<name>[A-Za-z][\w.-]{0,80})[\"']?[\s,]+[\"']?(?P<value>[^\s\"',\])]+)"
)
# --user name:password
_USER = re.compile(r"(?<![\w-])(?:-u|--(?:proxy-)?user(?:name)?)[=\s]+[\"']?[^\s:/\"']+:(?P<value>[^\s\"']+)")
_USERS = frozenset({"-u", "--user", "--username", "--proxy-user"})
_IS_OPTION = re.compile(r"--[A-Za-z]")
_NUMBER = re.compile(r"[+-]?[0-9.]+(?:e[+-]?[0-9]+)?|true|false|none|null|yes|no", re.IGNORECASE)
# Names of options besides those of a training's arguments; there an `auth` may be anything.
_MORE_NAMES = frozenset(
    {"auth", "cookie", "dsn", "login", "netrc", "pass", "pat", "pw", "sas", "sig", "signature"}
)
# user@host:path of ssh; the part behind the colon is not a port
_SSH = re.compile(r"(?:([^@/\\\s:]+)@)?(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_.-]{2,}):(?!//)([^@]+)")


def shown_command(argv: Sequence[object], args: Mapping[str, object] | None = None) -> str:
    """A command line: the value of an option whose name marks a secret is masked, and what looks like a key anywhere.

    So are the secrets among the training's arguments `args`: a script may take a key as a word without an option. URLs
    lose their user info and query, the home folder becomes `~`. At most 2,000 characters.
    """
    secrets = list(islice(_secrets_in(args or {}, set()), _MOST_SECRETS))
    return clean(" ".join(_quoted(word) for word in _shown_words(argv, secrets)), limit=_LONGEST_COMMAND)


def shown_path(path: str) -> str:
    """A path, with the home folder as `~`."""
    return shown_text(_without_home(path), limit=_LONGEST_COMMAND)


def shown_text(text: str, *, limit: int = _LONGEST_TEXT) -> str:
    """Another text from this machine (a branch, the subject of a commit), on one line of at most `limit` characters."""
    # A word at the end that would be cut is left out: part of a key would not be recognized.
    bounded = text if len(text) <= _SEARCHED else text[:_SEARCHED].rpartition(" ")[0]
    return clean(_without_keys(bounded), limit=limit)


def shown_address(url: str) -> str:
    """The address of a repository without user info, password, query and fragment.

    `git@` stays, since it names no person. An address on this machine is a path; the home folder in it becomes `~`.
    """
    if "://" in url:
        address = shown_text(_without_home(safe_url(url)))
        return address.replace("ssh://", "ssh://git@", 1) if url.startswith("ssh://git@") else address
    ssh = _SSH.fullmatch(url)
    if ssh is not None:
        user, host, path = ssh.groups()
        path = re.split("[?#]", path)[0]
        if user not in (None, "git"):
            path = re.sub(rf"(?:/home|/Users)?/{re.escape(user)}(?=/|$)", "~", path)
        return shown_text(f"{'git@' if user == 'git' else ''}{host}:{path}")
    return MASK if "@" in url else shown_path(url)


def _secrets_in(value: object, seen: set[int], *, is_secret: bool = False) -> Iterator[str]:
    """The texts under a name that marks a secret, at any depth; each container once, as it may contain itself."""
    if is_secret and isinstance(value, str) and value.strip():
        yield value
    if not isinstance(value, Mapping | list | tuple) or id(value) in seen or len(seen) >= _MOST_CONTAINERS:
        return
    seen.add(id(value))
    pairs = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
    for name, each in pairs:
        yield from _secrets_in(
            each, seen, is_secret=is_secret or (name is not None and is_secret_name(str(name)))
        )


def _shown_words(argv: Iterable[object], secrets: Sequence[str]) -> Iterator[str]:
    left, is_value, is_user = _SEARCHED, False, False
    for each in argv:
        word = str(each)
        left -= len(word) + 1
        if left < 0:
            yield "…"
            return
        word = hide_known(word, secrets) if len(word) <= _LONGEST_WORD else word
        if is_value and not _IS_OPTION.match(word):
            is_value = False
            yield MASK
            continue
        name, equals, _ = word.partition("=")
        bare = word.rstrip("\"':=")  # `Cookie:`, and the value is the next word
        is_value = (word.startswith("-") and not equals and _marks_secret(word)) or (
            bare != word and _marks_secret(re.split(r"[^\w.-]", bare)[-1])
        )
        if equals and name.startswith("-") and _marks_secret(name):
            yield f"{name}={MASK}"
        elif is_user and ":" in word:
            yield f"{word.partition(':')[0]}:{MASK}"
        else:
            yield _without_keys(_without_home(word)) if len(word) <= _LONGEST_WORD else MASK
        is_user = word in _USERS


def _without_keys(text: str) -> str:
    text = _URL.sub(lambda found: safe_url(found[0]), hide_key(text))
    text = _LOGIN.sub(f"{MASK}@", text)
    text = _PAIR.sub(_pair, text)
    text = _USER.sub(_masked, text)
    text = _OPTION.sub(lambda found: _masked(found) if _marks_secret(found["name"]) else found[0], text)
    return _RANDOM.sub(MASK, _FORMS.sub(MASK, text))


def _pair(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    # A number is a secret only if the last word of the name marks one: `key_dim` and `token_accuracy` do not.
    last = re.split(r"[._-]", name)[-1]
    is_secret = _marks_secret(last if _NUMBER.fullmatch(value) else name) and value != MASK
    return _masked(found) if is_secret else found[0]


def _masked(found: re.Match[str]) -> str:
    start, end = found.start("value") - found.start(), found.end("value") - found.start()
    return found[0][:start] + MASK + found[0][end:]


def _marks_secret(name: str) -> bool:
    words = re.split(r"[^A-Za-z]+", name.lower())
    return is_secret_name(name) or not _MORE_NAMES.isdisjoint(words)


def _quoted(word: str) -> str:
    return shlex.quote(word) if not word or re.search(r"[\s\"'\\|&;<>()]", word) else word


def _without_home(text: str) -> str:
    for pattern in _homes(os.path.expanduser("~")):
        text = pattern.sub("~", text)
    return text


@lru_cache(maxsize=8)
def _homes(home: str) -> tuple[re.Pattern[str], ...]:
    """Patterns that find the home folder at the start of a path, as it is written and as it really is."""
    found = sorted({home.rstrip("/\\"), os.path.realpath(home)}, key=len, reverse=True)
    # A home such as `/` or `/h` would replace the start of unrelated paths.
    return tuple(
        re.compile(rf"(?<![\w./~-]){re.escape(each)}(?=$|[/\\\s\"',:;])|(?<=file://){re.escape(each)}(?=/|$)")
        for each in found
        if len(each) > 2 and os.path.isabs(each)
    )
