"""Which values of a hub's response a row may store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.destinations.wire.kept import is_kept_address, is_kept_id, is_kept_name
from hubqueue.domain.redact import remember

KEY = "Vx3-qL8w_Tn5bZk2Jr7"
NEVER = (
    "",
    None,
    5,
    5.5,
    ["a"],
    {"a": 1},
    "a b",
    "a\tb",
    "a\n",
    "a\x1b[2J",
    "a\u202eb",
    "größe",
    "x" * 4000,
    KEY,
    f"x{KEY}x",
    KEY.upper(),
    KEY[:-1],
    KEY[2:],
    "0123456789abcdef0123456789abcdef0123456789",
    "ul_" + "0123456789" * 4,
)
NO_ADDRESS = (
    "https://hub.example.org/m?x=1",
    "https://hub.example.org/m#x",
    "https://user@hub.example.org/m",
    "https://user:pw@hub.example.org/m",
    "https://hub.example.org/m\\x",
    'https://hub.example.org/"><script>',
)


@pytest.mark.parametrize("found", [*NEVER, *NO_ADDRESS, "a/b", "a.b"])
def test_an_id_that_is_not_kept(found: object) -> None:
    assert not is_kept_id(found, [KEY])


@pytest.mark.parametrize("found", [*NEVER, *NO_ADDRESS, f"gs://a/{KEY[1:]}"])
def test_a_name_that_is_not_kept(found: object) -> None:
    assert not is_kept_name(found, [KEY])


@pytest.mark.parametrize(
    "found",
    [
        *NEVER,
        *NO_ADDRESS,
        *("javascript:alert(1)", "file:///etc/passwd", "gs://a/b", "//hub.example.org/m", "https:///m"),
        *("https://[::1", "https://h:0/m", "https://h:99999/m", f"https://hub.example.org/{KEY}"),
    ],
)
def test_an_address_that_is_not_kept(found: object) -> None:
    assert not is_kept_address(found, [KEY])


def test_real_values_of_hubs_are_kept() -> None:
    assert is_kept_id("AbcDEF0123456789wxyz", [KEY], longest=64)
    assert is_kept_id("model-1", [KEY])
    assert is_kept_name("gs://bucket/users/1/models/0f/best%20one.pt", [KEY])
    assert is_kept_name("agent-1", [KEY], longest=128)
    assert is_kept_address("https://platform.ultralytics.com/bob/coco/exp-1", [KEY])
    assert is_kept_address("http://127.0.0.1:8080/models/model-1", [KEY])
    assert not is_kept_id("x" * 65, [], longest=64)


@given(found=st.text(max_size=60) | st.text(st.characters(max_codepoint=127), max_size=8))
def test_a_kept_value_is_one_plain_word(found: str) -> None:
    if is_kept_name(found, []):
        assert found.isascii() and found.isprintable() and not set(found) & set(' ?#@\\"<>')


def test_an_id_with_a_word_of_a_known_key_is_kept() -> None:
    remember(["my-training-2026-token-of-the-cluster"])

    assert is_kept_id("my-training-1", [])
    assert is_kept_name("my-training.pt", ["a-second-token-with-my-training-in-it"])
    assert not is_kept_id("my-training-2026-token-of", [])
