"""Text of servers and users, before it reaches a log, a row or a terminal."""

from __future__ import annotations

import base64
import html
import json
import unicodedata
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.domain.redact import LEAST_KEY, clean, contains_secret, hide_key, hide_known, remember, safe_url

KEY = "0123456789abcdef0123456789abcdef0123456789"
PLATFORM_KEY = "ul_" + "0123456789abcdef" * 2 + "01234567"
MODEL_ID = "AbcDEF0123456789wxyz"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all is well", "all is well"),
        ("two\r\n  lines\n", "two lines"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J\x07\x00", "\\x9b2J\\x07\\x00"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("\u2066a\u2069\u200f", "\\u2066a\\u2069\\u200f"),
        ("a\u2028b\u0085c", "a b c"),
        ("\U000e0041\ud800", "\\U000e0041\\ud800"),
        ("größer, 大", "größer, 大"),
        ("", ""),
    ],
)
def test_text_becomes_one_line_that_shows_its_control_characters(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_long_text_is_cut_with_an_ellipsis() -> None:
    shown = clean("x y " * 100, limit=10)

    assert shown == "x y x y x…"


def test_text_of_a_server_is_kept_to_two_hundred_characters() -> None:
    assert len(clean("x" * 200)) == len(clean("x" * 201)) == 200
    assert clean("x" * 201).endswith("…")


def test_a_text_of_exactly_the_limit_is_left_whole() -> None:
    assert clean("0123456789", limit=10) == "0123456789"


def test_a_secret_is_masked_before_the_cut() -> None:
    shown = clean("the key is hunter2-hunter2 you know", limit=20, secrets=["hunter2-hunter2"])

    assert shown == "the key is *** you …"


def test_a_secret_that_begins_like_another_is_masked_whole() -> None:
    shown = clean("got abcdefgh-ijkl", secrets=["abcdefgh", "abcdefgh-ijkl", ""])

    assert shown == "got ***"


def test_a_secret_is_masked_as_it_stands_in_a_query_too() -> None:
    assert clean("see /a?x=a%2Fb%3Dc%2Fd%3De", secrets=["a/b=c/d=e"]) == "see /a?x=***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"bad key {KEY}!", "bad key ***!"),
        (f"bad key {KEY.upper()}", "bad key ***"),
        (f"bad key {PLATFORM_KEY}", "bad key ***"),
        (f"model {KEY}_{MODEL_ID}", f"model ***_{MODEL_ID}"),
        ("https://x.org/models/1?api_key=abc&v=2", "https://x.org/models/1?api_key=***&v=2"),
        ("https://x.org/?a=1&key=abc#frag", "https://x.org/?a=1&key=***#frag"),
        (
            "https://s.org/o?X-Goog-Signature=beef&X-Goog-Date=1",
            "https://s.org/o?X-Goog-Signature=***&X-Goog-Date=1",
        ),
        ("x-api-key: abc", "x-api-key: ***"),
        ('{"apiKey": "abc", "epoch": 3}', '{"apiKey": "***", "epoch": 3}'),
        ("{'x-api-key': 'abc'}", "{'x-api-key': '***'}"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("authorization=abc", "authorization=***"),
        ("sent Bearer abc.def, then left", "sent Bearer ***, then left"),
        ("via http://user:pa@ss@proxy:3128/x", "via http://***@proxy:3128/x"),
        ("password=hunter2 token: t0k3n", "password=*** token: ***"),
        ("Authorization:  Bearer   abc", "Authorization:  Bearer   ***"),
        ("sent Bearer\tabc", "sent Bearer\t***"),
        ("{'Authorization': b'Bearer abc'}", "{'Authorization': b'Bearer ***'}"),
        ('{"authorization": ["Bearer abc"]}', '{"authorization": ["Bearer ***"]}'),
        ('{\\"api_key\\": \\"abc\\"}', '{\\"api_key\\": \\"***\\"}'),
        ("{'token': b'abc'}", "{'token': b'***'}"),
        ('{"password": "my two words", "a": "b c"}', '{"password": "***", "a": "b c"}'),
        (
            "https://x.org/login?next=%2Fm%3Fapi_key%3Dabc&v=2",
            "https://x.org/login?next=%2Fm%3Fapi_key%3D***&v=2",
        ),
        ("https://x.org/login?next=%2Fm%3Fkey%3Dabc", "https://x.org/login?next=%2Fm%3Fkey%3D***"),
        (f"next=%2Fm%3D{KEY}", "next=%2Fm%3D***"),
        (f"first line\\n{KEY}\\n", "first line\\n***\\n"),
        ("see //user:pass@host/x", "see //***@host/x"),
    ],
)
def test_what_looks_like_a_key_is_masked(text: str, shown: str) -> None:
    assert hide_key(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sha256 " + "0123456789abcdef" * 4,
        "sha1 " + "0123456789" * 4,
        f"model {MODEL_ID} is unknown",
        "the key of a metric: train/box_loss",
        "unknown key rate_limits.metric; did you mean 'metrics'?",
        "mail a@b.org about https://x.org/@home",
    ],
)
def test_what_is_no_key_is_left(text: str) -> None:
    assert hide_key(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.example.org/v1", "https://api.example.org/v1"),
        ("https://u:p@api.example.org:8443/v1?k=1#f", "https://api.example.org:8443/v1"),
        ("http://[::1]:8000/", "http://[::1]:8000/"),
        ("https://u:p/w@example.org/", "https://***"),
        ("https://u:p?w@example.org/", "https://***"),
        ("https://u:p#w@example.org/", "https://***"),
        ("postgresql+psycopg://u:p@db/outbox", "postgresql+psycopg://db/outbox"),
        ("sqlite:////var/lib/outbox.db", "sqlite:////var/lib/outbox.db"),
        ("u:p@example.org/x", "example.org/x"),
        ("//u:p@example.org/x", "//example.org/x"),
        ("https:/u:p@example.org/x", "***"),
        ("https://u:12/w@example.org/x", "https://***"),
        ("https://x.org/@home", "https://x.org/@home"),
        ("u:p://w@example.org/x", "***"),
        (f"https://x.org/{KEY}_{MODEL_ID}", f"https://x.org/***_{MODEL_ID}"),
        ("https://x.org/\x1b[2J", "https://x.org/\\x1b[2J"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_the_parts_that_may_hold_keys(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def any_text(max_size: int) -> st.SearchStrategy[str]:
    """Every code point alike, halves of surrogate pairs among them."""
    return st.lists(st.integers(0, 0x10FFFF).map(chr), max_size=max_size).map("".join)


@given(text=any_text(400), limit=st.integers(min_value=1, max_value=60))
def test_any_text_becomes_a_short_printable_line(text: str, limit: int) -> None:
    shown = clean(text, limit=limit)

    assert len(shown) <= limit
    assert not any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in shown)
    shown.encode()


SECRETS = st.text(alphabet="abcdefghijklmnop0123456789/+=_-", min_size=8, max_size=50)


@given(before=any_text(40), secret=SECRETS, after=any_text(40), limit=st.integers(5, 300))
def test_no_known_secret_gets_through(before: str, secret: str, after: str, limit: int) -> None:
    shown = clean(before + secret + after, limit=limit, secrets=[secret])

    assert secret not in shown


@given(before=any_text(20), key=st.text(alphabet="0123456789abcdef", min_size=42, max_size=42))
def test_a_hub_key_is_masked_wherever_it_stands_alone(before: str, key: str) -> None:
    for text in (
        f"{before} {key}",
        f"{before} {key}_{MODEL_ID}",
        json.dumps({"k": key}),
        f"{before}?api_key={key}",
    ):
        assert key not in clean(text, limit=10_000)


@given(text=st.text(alphabet="abk@:/?#=&\"' ulkeytoken_0", max_size=120))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = hide_key(text)

    assert hide_key(once) == once


_LOUD = "Zk/7+r=&%4<m'Q~$9x"
_SPELLED = {
    "lower": str.lower,
    "upper": str.upper,
    "quoted": lambda key: quote(key, safe=""),
    "quoted as a form": quote_plus,
    "quoted twice": lambda key: quote(quote(key, safe=""), safe=""),
    "every sign quoted": lambda key: "".join(f"%{ord(sign):02x}" for sign in key),
    "half of the signs quoted": lambda key: "".join(
        f"%{ord(s):02X}" if n % 2 else s for n, s in enumerate(key)
    ),
    "JSON": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON in escapes": lambda key: "".join(f"\\u{ord(sign):04x}" for sign in key),
    "Python in escapes": lambda key: "".join(f"\\x{ord(sign):02x}" for sign in key),
    "HTML": html.escape,
    "HTML in numbers": lambda key: "".join(
        f"&#{ord(sign)};&#x{ord(sign):x};"[: len(f"&#{ord(sign)};")] for sign in key
    ),
    "hexadecimal": lambda key: key.encode().hex(),
}


@pytest.mark.parametrize("spelling", _SPELLED)
def test_a_secret_is_masked_in_every_spelling(spelling: str) -> None:
    spelled = _SPELLED[spelling](_LOUD)

    assert clean(f"it was <{spelled}>!", secrets=[_LOUD]).replace('"', "") == "it was <***>!"


@pytest.mark.parametrize("before", ["", "k", "k:", "user:", "apikey:"])
def test_a_secret_is_masked_in_base64_whatever_stands_before_it(before: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for after in ("", "x", ":pw"):
            spelled = encode((before + _LOUD + after).encode()).decode()

            shown = clean(f"sent {spelled}", secrets=[_LOUD])

            assert "***" in shown
            # Beside the mask, only the neighbours remain, and the few bits of the key that share a character with them.
            assert len(shown) <= len("sent ***") + len(spelled) - len(_LOUD)


def test_tells_finds_a_secret_in_any_spelling() -> None:
    assert contains_secret(f"id-{quote(_LOUD, safe='')}", [_LOUD, ""])
    assert not contains_secret("abcdefghij0123456789", [_LOUD, ""])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "near", ["{half}z", "\\", "%25", "%252525", "&#0000", "5", "\\\\\\\\{half}", "&amp;{half}"]
)
def test_a_text_that_is_nearly_the_key_costs_no_time(near: str) -> None:
    key = "5%25&" * 9

    shown = clean((near.replace("{half}", key[:-1]) * 60_000)[:60_000], secrets=[key])

    assert len(shown) == 200


@pytest.mark.parametrize("short", ["k", "a", "abc", "0123456"])
def test_a_short_key_masks_no_letters_of_other_words(short: str) -> None:
    text = "the model abcdefghij0123456789 looks like a knot"

    assert clean(text, secrets=[short]) == text
    assert not contains_secret("abcdefghij0123456789", [short])


def test_a_short_key_is_masked_where_it_is_the_whole_value() -> None:
    assert clean(" hunter2 ", secrets=["hunter2"]) == "***"
    assert contains_secret("hunter2", ["hunter2"])


def test_a_key_that_is_long_enough_is_masked_inside_a_word() -> None:
    key = "q7Zx-w2B"[:LEAST_KEY]

    assert clean(f"id{key}id", secrets=[key]) == "id***id"


LONG_KEYS = st.text(
    alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=16, max_size=64
)


@given(before=any_text(30), key=LONG_KEYS, after=any_text(30), data=st.data())
def test_no_long_part_of_a_known_key_gets_through(
    before: str, key: str, after: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(key) - 8))
    stop = data.draw(st.integers(start + 8, len(key)))
    text = before + key[start:stop] + after

    shown = clean(text, limit=10_000, secrets=[key])

    assert not any(key[at : at + 8].lower() in shown.lower() for at in range(len(key) - 7))
    shown_twice = clean(shown, limit=10_000, secrets=[key])
    assert shown_twice == shown


@pytest.mark.parametrize("part", [KEY[:-1], KEY[1:], KEY[5:30], KEY[:8].upper()])
def test_a_part_of_a_key_is_masked_before_the_cut(part: str) -> None:
    assert clean(f"it ends with {part}", secrets=[KEY]) == "it ends with ***"


def test_a_part_of_a_key_that_is_too_short_to_matter_is_left() -> None:
    assert clean("1234567", secrets=[KEY]) == "1234567"


def test_an_id_with_a_word_of_the_key_is_no_secret_and_one_with_most_of_it_is() -> None:
    assert not contains_secret("ultralytics-yolo", ["ultralytics-keys-q7Zx"])
    assert contains_secret(f"x{KEY[:-1]}", [KEY])


def test_a_remembered_key_is_masked_in_every_text() -> None:
    key = "Qm5xW9zK2vR7tB4n"
    remember([key, "tiny"])

    assert clean(f"it is {key}") == "it is ***"
    assert hide_key(f"line\n{key[:-3]}!") == "line\n***!"
    assert hide_known("a tiny thing") == "a tiny thing"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("period", [1, 2, 7, 8, 9])
def test_parts_of_many_keys_in_a_long_text_cost_one_pass(period: int) -> None:
    keys = [f"{number:02d}" + "ab" * 20 for number in range(20)]
    text = ("ab" * 20)[:period] * (65_536 // period)

    shown = clean(text, limit=100_000, secrets=keys)

    assert "abababab" not in shown
