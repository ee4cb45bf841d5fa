"""The arguments of a training, with the keys among them masked.

Promises: a value is masked at any depth if its name says that it is a key, token, password, secret or credential, or if
it looks like a key. A text of more than 10,000 characters is cut. All other values stay unchanged. Raises nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any

from hubqueue.domain.plain import DEEPEST_VALUE, LONGEST_TEXT, MOST_TEXT, text_of, type_of
from hubqueue.domain.redact import MASK, clean, hide_key

_LOG = logging.getLogger("hubqueue")
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SECRET = re.compile(
    r"(?:(?:api|access|auth|client|private|secret|hub|hf)?(?:key|token|secret)"
    r"|pass(?:word|wd|phrase|code|file)s?|pwd|secrets|credentials?|creds|authorization|bearer)[0-9]*"
)
_SEVERAL = re.compile(r"(?:api|access|auth|client|private|secret|hub|hf)(?:keys|tokens)[0-9]*")
# A value with more of them contains itself several times.
_MOST_VALUES = 100_000
_LONGEST_KEY = 1000
# Names whose masked form is kept.
_MOST_NAMES = 1000
# Characters of all arguments together: masking takes microseconds for each.
_MOST_ARGUMENTS = 1 << 18


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a name marks its value as a secret: `api_key`, `apiKey`, `HF_TOKEN`, but not `keyboard` or `kpt_shape`."""
    words = _words(name)
    pairs = [first + second for first, second in pairwise(words)]
    return any(_SECRET.fullmatch(word) for word in words) or any(
        _SEVERAL.fullmatch(each) for each in (*words, *pairs)
    )


def hide_secrets(args: Mapping[str, object]) -> dict[str, Any]:
    """`args` with secrets masked and long texts cut; one warning names the arguments that had a secret, one the long ones."""
    hiding = _Hiding(_MOST_ARGUMENTS)
    hidden: dict[str, Any] = hiding.mapping(args, "", 0)
    if hiding.found:
        _LOG.warning("masked, because they look like keys: the values of %s", _listed(hiding.found))
    if hiding.cut:
        warn_lost(hiding.cut)
    return hidden


def hide_in(value: object, *, most: int = 2 * MOST_TEXT) -> Any:
    """Mask secrets in any other value that is sent to a hub. What is beyond `most` characters is masked or left out."""
    return _Hiding(most).value(value, "", 0)


def hide_text(value: object) -> str:
    """Any value as text without secrets, of a length that a hub accepts. Never raises."""
    return _shortened(text_of(value))


def warn_lost(names: Iterable[str]) -> None:
    """Log the names of values that cannot be sent as they are."""
    _LOG.warning("cannot be sent as they are, so cut or left out: the values of %s", _listed(names))


def _listed(names: Iterable[str]) -> str:
    known = list(dict.fromkeys(clean(name, limit=60) for name in islice(names, 1000)))
    return ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT + _LONGEST_KEY:
        return hide_key(text)
    # What follows the cut may be the rest of a key, and its beginning would not be recognized.
    return hide_key(text[: LONGEST_TEXT + _LONGEST_KEY])[:-_LONGEST_KEY] + "…"


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD_ENDS.split(name) if word]


def _is_secret(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool) or not is_secret_name(name):
        return False
    if isinstance(value, str | bytes) and value in ("", b"", MASK):
        return False
    # A number is a secret only if the last word of the name says so: `key_dim` and `token_accuracy` are not.
    return not isinstance(value, int | float) or bool(_SECRET.fullmatch(_words(name)[-1]))


class _Hiding:
    """Masks one value. `found` has the paths of secrets, `cut` those of texts that were too long."""

    def __init__(self, room: int) -> None:
        self.found: list[str] = []
        self.cut: list[str] = []
        self._room = room  # characters
        self._left = max(_MOST_VALUES, room // 8)
        self._names: dict[str, str] = {}
        self._has_noted = False

    def value(self, value: object, path: str, depth: int) -> Any:
        self._left -= 1
        if depth > DEEPEST_VALUE or self._left < 0:
            return MASK
        try:
            return self._value(value, path, depth)
        except Exception:  # third-party code
            return type_of(value)

    def _value(self, value: object, path: str, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return self.mapping(value, path, depth)
        if isinstance(value, list | tuple):
            inner = []
            for each in value:
                if self._is_full(path):
                    break
                inner.append(self.value(each, path, depth + 1))
            return tuple(inner) if isinstance(value, tuple) else inner
        try:
            text = str(value)
        except Exception:  # third-party code; its type is sent where the text is needed
            return value
        self._room -= min(len(text), LONGEST_TEXT)
        if self._room < 0:
            self.cut.append(path)
            return "…"
        hidden = _shortened(text)
        if hidden == text:
            return value
        (self.found if len(text) <= LONGEST_TEXT + _LONGEST_KEY else self.cut).append(path)
        return hidden

    def mapping(self, given: Mapping[Any, object], path: str, depth: int) -> dict[str, Any]:
        hidden = {}
        for key, value in given.items():
            if self._is_full(path):
                break
            name = self._name(key)
            inner = f"{path}.{name}" if path else name
            secret = _is_secret(name, value)
            if secret:
                self.found.append(inner)
            hidden[name] = MASK if secret else self.value(value, inner, depth + 1)
        return hidden

    def _name(self, key: object) -> str:
        """A name without secrets. Those that repeat are looked at once: masking takes microseconds for each."""
        text = text_of(key)
        if text not in self._names:
            if len(self._names) >= _MOST_NAMES:
                return _shortened(text)
            self._names[text] = _shortened(text)
        return self._names[text]

    def _is_full(self, path: str) -> bool:
        """Whether the rest of a list or a mapping is left out."""
        if self._left >= 0:
            return False
        if not self._has_noted:  # once: everything around it is full too
            self.cut.append(path)
        self._has_noted = True
        return True
