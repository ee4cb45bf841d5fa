"""Makes text from outside safe to store and to show.

`clean` promises one line of bounded length without control characters, escape sequences or characters that change the
writing direction, and without a known key, a long part of one, or anything that looks like one. In doubt it masks a
harmless word rather than let a key through.

A key that this process knows (`remember`) is masked in every text, for any host or file.
"""

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import quote

_T = TypeVar("_T")
MASK = "***"
LEAST_KEY = 8
"""The shortest key that is masked inside a text: the characters of a shorter one occur in too many ordinary words."""
# For a key of at least `_PARTED` characters, parts of `_PART` characters are masked too. Eight random characters do not
# occur by chance (for hexadecimal digits: four billion to one). If a shorter part leaks, the rest is still a secret.
_PART, _PARTED = LEAST_KEY, 16
# An id is refused only for a longer part: if a key contains a word, ids with that word must stay usable.
_REFUSED_PART = 16
_MOST_REMEMBERED = 64

_BLANKS = re.compile(r"[ \t\r\n\f\v\u0085\u2028\u2029]+")
# Control, format (with all direction marks), surrogate and private-use characters, line and paragraph separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})

_WORD = r"(?:api|access|auth|id|refresh|client|secret|private|x)[_-]?"
_NAME = rf"(?:{_WORD}key|token|passw(?:or)?d|passfile|secret|credentials?|signature|(?:[?&]|%3f|%26)key)"
# Between a name and its value: `=`, `: `, `": "`, `\": \"` (JSON in JSON), `': b'`, `": ["`, `%3D` (a URL in a URL).
_CLOSE = r"(?:\\{0,3}[\"'])?"
_MEANS = r"\s*(?:[:=]|%3[ad])\s*"
_OPEN = r"\[?b?\\{0,3}[\"']"
# The start of a key as a separate word; the characters of a preceding %3D or \n do not belong to it.
_START = r"(?:(?<![0-9A-Za-z])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
_PATTERNS = (
    # user:password@ of a URL
    (re.compile(r"(//)[^\s/?#]*@"), rf"\1{MASK}@"),
    # Authorization: Bearer …, also as JSON or as a Python dict
    (
        re.compile(rf"(authorization{_CLOSE}{_MEANS}(?:{_OPEN})?(?:[a-z]+\s+)?)[^\s,;\"']+", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer\s+)[^\s,;\"']+", re.IGNORECASE), rf"\1{MASK}"),
    # "token": "…" up to the closing quote; a backslash before that quote is kept
    (re.compile(rf"({_NAME}{_CLOSE}{_MEANS}{_OPEN})[^\"']*[^\"'\\]", re.IGNORECASE), rf"\1{MASK}"),
    # api_key=…, x-api-key: …, ?X-Goog-Signature=…
    (re.compile(rf"({_NAME}{_CLOSE}{_MEANS})(?!{_OPEN})[^\s&,;#\"']+", re.IGNORECASE), rf"\1{MASK}"),
    # KEY_MODELID: the model id is not secret
    (re.compile(rf"{_START}[0-9A-Za-z]{{42}}_([0-9A-Za-z]{{20}})(?![0-9A-Za-z])"), rf"{MASK}_\1"),
    # a HUB key, a Platform key
    (re.compile(rf"{_START}[0-9A-Fa-f]{{42}}(?![0-9A-Za-z])"), MASK),
    (re.compile(r"ul_[0-9A-Fa-f]{32,}"), MASK),
)
# Without a lock, which a fork could leave locked forever: each step is one atomic operation of a dictionary.
_KNOWN: dict[str, None] = {}
_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_NAMED = {"&": "amp", "<": "lt", ">": "gt", "'": "apos"}
# A shorter piece of base64 would mask harmless words.
_LEAST_BASE64 = 8
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//")
# A fragment only as the path of a page, as MLflow has it.
_LINK = re.compile(
    r"https?://[^\s/?#@<>\"'\\]+(?:/[^\s?#@<>\"'\\]*(?:#/[0-9A-Za-z_/-]*)?)?", re.ASCII | re.IGNORECASE
)
_HOST = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[^:@\s\[\]]*)(?::[0-9]*)?")


def clean(text: str, *, limit: int = 200, secrets: Iterable[str] = ()) -> str:
    """`text` as one line of at most `limit` characters, for a log, a row of the outbox or a terminal.

    Line breaks become spaces, control characters become visible (`\\x1b`), `secrets` and anything that looks like a
    key become `***`. Cut text ends with an ellipsis. Masking comes before the cut, because part of a key would not be
    recognized.
    """
    text = _visible(hide_key(_BLANKS.sub(" ", hide_known(text, secrets)).strip()))
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def remember(secrets: Iterable[str]) -> None:
    """Mask these keys in every text from now on, until this process ends."""
    for secret in secrets:
        if len(secret) >= LEAST_KEY:
            _KNOWN.pop(secret, None)
            _KNOWN[secret] = None
    for oldest in list(_KNOWN)[:-_MOST_REMEMBERED]:
        _KNOWN.pop(oldest, None)


def contains_secret(text: str, secrets: Iterable[str] = ()) -> bool:
    """Whether `text` contains one of the `secrets` or a known key, in any spelling, or a long part of one."""
    known = _longest_first(secrets)
    return (
        text in known
        or any(len(each) >= LEAST_KEY and _spelled(each).search(text) for each in known)
        or next(_parts(text, known, _REFUSED_PART), None) is not None
    )


def hide_known(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with the `secrets`, the known keys and long parts of them masked, in any spelling."""
    known = _longest_first(secrets)
    if not known:
        return text
    if text.strip() in known:
        return MASK
    for secret in known:
        if len(secret) >= LEAST_KEY:
            text = _spelled(secret).sub(MASK, text)
    kept, end = [], 0
    for start, stop in _parts(text, known, _PART):
        kept += [text[end:start], MASK]
        end = stop
    return "".join([*kept, text[end:]])


def hide_key(text: str) -> str:
    """`text` with every known key masked, and anything that looks like a key: in URLs, headers, JSON, or by its form.

    Known forms: 42 hex digits, `ul_` and 40 hex digits, KEY_MODELID (42 and 20 characters).
    """
    text = hide_known(text)
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    return text


def harmless(value: _T) -> _T:
    """A value from a row, at any depth, with control characters made visible: other programs can write rows too."""
    made: Any = value
    if isinstance(value, str):
        made = _visible(value)
    elif isinstance(value, dict):
        made = {name: harmless(each) for name, each in value.items()}
    elif isinstance(value, list):
        made = [harmless(each) for each in value]
    return cast("_T", made)


def link(url: str | None) -> str | None:
    """A URL from a row, if it is safe to follow: http or https, without user info, spaces and values; else None."""
    return url if url is not None and url.isprintable() and _LINK.fullmatch(url) else None


def safe_url(url: str) -> str:
    """`url` without user info, query and fragment, which may contain keys. A text that may not be a URL is masked."""
    scheme, found, rest = url.partition("//") if _SCHEME.match(url) else ("", "", url)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path = re.split(r"[?#]", rest[len(authority) :], maxsplit=1)[0]
    authority = authority.rpartition("@")[2]
    if not _HOST.fullmatch(authority) or (":" in authority and "@" in path):
        # A password that contains a slash ends up here, so nothing after it can be shown either.
        authority, path = MASK, ""
    return _visible(hide_key(f"{scheme}{found}{authority}{path}"))


def _longest_first(secrets: Iterable[str]) -> list[str]:
    return sorted({*list(_KNOWN), *(secret for secret in secrets if secret)}, key=len, reverse=True)


def _parts(text: str, secrets: Iterable[str], length: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) of each part of a secret with at least `length` characters, in one pass over the text."""
    wanted = [_pieces(secret, length) for secret in secrets if len(secret) >= _PARTED]
    pieces = wanted[0] if len(wanted) == 1 else frozenset().union(*wanted)
    if not pieces or len(text) < length:
        return
    lower, end = text.translate(_LOWER), -1
    start = 0
    for at in range(len(lower) - length + 1):
        if lower[at : at + length] in pieces:
            if at > end >= 0:
                yield start, end
            if at > end:
                start = at
            end = at + length
    if end >= 0:
        yield start, end


@lru_cache(maxsize=2 * _MOST_REMEMBERED)
def _pieces(secret: str, length: int) -> frozenset[str]:
    """All parts of a secret with this length, of its plain form and its base64 forms, in lower case."""
    texts = [secret, *_in_base64(secret)]
    return frozenset(
        text[at : at + length].translate(_LOWER) for text in texts for at in range(len(text) - length + 1)
    )


@lru_cache(maxsize=2 * _MOST_REMEMBERED)
def _spelled(secret: str) -> re.Pattern[str]:
    """A pattern that finds a key as it is, in any case, quoted for a URL (also twice), escaped, in hex or in base64."""
    octets = secret.encode("utf-8", "surrogatepass")
    forms = [re.escape(secret), "".join(_sign(sign) for sign in secret), re.escape(octets.hex())]
    for face in _in_base64(secret):
        if len(face) >= _LEAST_BASE64:
            forms.append(re.escape(face).replace(r"\+", "[+-]").replace("/", "[/_]"))
    return re.compile("|".join(forms), re.IGNORECASE)


def _in_base64(secret: str) -> Iterator[str]:
    """The three base64 forms of a key: they depend on the number of bytes before it, modulo 3."""
    octets = secret.encode("utf-8", "surrogatepass")
    for shift, start in ((0, 0), (1, 2), (2, 3)):
        face = b64encode(bytes(shift) + octets).decode().rstrip("=")
        whole = (shift + len(octets)) % 3 == 0  # else the last character also depends on the following bytes
        yield face[start:] if whole else face[start:-1]


def _sign(sign: str) -> str:
    """A pattern for a character of a key in all its spellings: %XX, %25XX, \\xXX, \\uXXXX, &#NN;, &#xXX;, &name;, itself.

    An atomic group: with backtracking into each character, a server could make the search take years.
    """
    code, forms = f"{ord(sign):02x}", [rf"\\{{0,4}}{re.escape(sign)}"]
    if sign in _NAMED:
        forms.insert(0, f"&{_NAMED[sign]};")
    if not sign.isascii():
        forms.insert(0, re.escape(quote(sign.encode("utf-8", "surrogatepass"))))
    coded = rf"%(?:25){{0,3}}{code}|\\{{1,4}}(?:x|u00){code}|&#(?:0{{0,4}}{ord(sign)}|x0{{0,4}}{code});"
    return f"(?>{coded}|{'|'.join(forms)})"


def _visible(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(sign) if unicodedata.category(sign) in _UNSAFE else sign for sign in text)


def _escaped(sign: str) -> str:
    code = ord(sign)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
