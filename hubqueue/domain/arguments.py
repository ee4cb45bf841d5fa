"""The arguments of a training, with the keys among them masked.

Promises: a value is masked at any depth if its name says that it is a key, token, password, secret or credential, or if
it looks like a key. All other values stay unchanged. Raises nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from hubqueue.domain.redact import MASK, clean, hide_key

_LOG = logging.getLogger("hubqueue")
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SECRET = re.compile(
    r"(?:(?:api|access|auth|client|private|secret|hub|hf)?(?:key|token|secret)"
    r"|pass(?:word|wd|phrase|code|file)s?|pwd|secrets|credentials?|creds|authorization|bearer)[0-9]*"
)
_SEVERAL = re.compile(r"(?:api|access|auth|client|private|secret|hub|hf)(?:keys|tokens)[0-9]*")
# A value nested deeper is not an argument of a training, or contains itself.
_DEEPEST = 30


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a name marks its value as a secret: `api_key`, `apiKey`, `HF_TOKEN`, but not `keyboard` or `kpt_shape`."""
    words = _words(name)
    pairs = [first + second for first, second in pairwise(words)]
    return any(_SECRET.fullmatch(word) for word in words) or any(
        _SEVERAL.fullmatch(each) for each in (*words, *pairs)
    )


def hide_secrets(args: Mapping[str, object]) -> dict[str, Any]:
    """`args` with secrets masked; one warning names the arguments that had one."""
    found: list[str] = []
    hidden = _of_mapping(args, "", found, 0)
    if found:
        names = ", ".join(dict.fromkeys(clean(name, limit=60) for name in found[:20]))
        _LOG.warning("masked, because they look like keys: the values of %s", names)
    return hidden


def hide_in(value: object) -> Any:
    """Mask secrets in any other value that is sent to a hub."""
    return _hidden(value, "", [], 0)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD_ENDS.split(name) if word]


def _of_mapping(given: Mapping[Any, object], path: str, found: list[str], depth: int) -> dict[str, Any]:
    hidden = {}
    for name, value in given.items():
        inner = f"{path}.{name}" if path else str(name)
        is_secret = _is_secret(str(name), value)
        if is_secret:
            found.append(inner)
        hidden[hide_key(str(name))] = MASK if is_secret else _hidden(value, inner, found, depth + 1)
    return hidden


def _is_secret(name: str, value: object) -> bool:
    if value is None or isinstance(value, bool) or value in ("", b"", MASK) or not is_secret_name(name):
        return False
    # A number is a secret only if the last word of the name says so: `key_dim` and `token_accuracy` are not.
    return not isinstance(value, int | float) or bool(_SECRET.fullmatch(_words(name)[-1]))


def _hidden(value: object, path: str, found: list[str], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth > _DEEPEST:
        return MASK
    if isinstance(value, Mapping):
        return _of_mapping(value, path, found, depth)
    if isinstance(value, list | tuple):
        inner = [_hidden(each, path, found, depth + 1) for each in value]
        return tuple(inner) if isinstance(value, tuple) else inner
    try:
        text = str(value)
    except Exception:  # third-party code; the error is reported where the text is needed
        return value
    hidden = hide_key(text)
    if hidden == text:
        return value
    found.append(path)
    return hidden
