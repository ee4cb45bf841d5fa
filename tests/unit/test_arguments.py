"""Which arguments of a training are secrets, and what is left of them."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from hubqueue.domain import arguments
from hubqueue.domain.arguments import hide_in, hide_secrets, is_secret_name

KEY = "0123456789abcdef0123456789abcdef0123456789"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "key",
            "api_key",
            "apiKey",
            "APIKey",
            "apikey",
            "API-KEY",
            "x.api.key",
            "api_key_2",
            "key1",
            "api_keys",
        ),
        *("token", "HF_TOKEN", "hfToken", "authToken", "authtoken", "access_tokens", "token_for_hub"),
        *(
            "password",
            "db_password",
            "PASSWD",
            "passphrase",
            "secret",
            "hub_secret",
            "clientSecret",
            "secrets",
        ),
        *("credential", "credentials", "aws credentials", "Authorization", "HUBKey"),
    ],
)
def test_a_name_with_the_word_for_a_secret_is_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "keyboard",
            "monkey",
            "tokenizer",
            "tokens",
            "max_tokens",
            "keypoints",
            "kpt_shape",
            "keys",
            "turkey",
        ),
        *("data", "model", "compass", "passes", "secretary", "", "_", "epochs", "hockey_stick", "keyframe"),
    ],
)
def test_a_name_that_only_has_its_letters_is_not(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_are_masked_however_deep_and_everything_else_stays(caplog: pytest.LogCaptureFixture) -> None:
    given: dict[str, Any] = {
        "api_key": "SECRETZZZ",
        "epochs": 3,
        "key_dim": 64,
        "token": 12345678,
        "password": "",
        "secret": None,
        "logger": {"wandb": [{"apiKey": "SECRETYYY", "project": "p"}]},
        "data": f"https://x.invalid/d.zip?api_key={KEY}",
        "path": Path("weights/last.pt"),
        "space": Namespace(hub_token="SECRETXXX"),
        "note": KEY,
        "shape": (1, 2),
    }

    with caplog.at_level(logging.WARNING, "hubqueue"):
        hidden = hide_secrets(given)

    assert "SECRET" not in repr(hidden) + caplog.text
    assert KEY not in repr(hidden) + caplog.text
    assert hidden["logger"] == {"wandb": [{"apiKey": "***", "project": "p"}]}
    assert hidden["data"] == "https://x.invalid/d.zip?api_key=***"
    kept = {
        "epochs": 3,
        "key_dim": 64,
        "password": "",
        "secret": None,
        "path": given["path"],
        "shape": (1, 2),
    }
    assert {name: hidden[name] for name in kept} == kept
    assert given["api_key"] == "SECRETZZZ"
    assert len(caplog.records) == 1
    for name in ("api_key", "token", "logger.wandb.apiKey", "data", "space", "note"):
        assert name in caplog.text


def test_arguments_without_secrets_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hide_secrets(hide_secrets({"epochs": 3, "api_key": "***"}))

    assert caplog.records == []


def test_arguments_that_contain_themselves_are_cut() -> None:
    loop: dict[str, Any] = {}
    loop["inner"] = loop

    assert "***" in repr(hide_in(loop))


def test_an_argument_whose_str_fails_is_kept() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    odd = Odd()

    assert hide_secrets({"odd": odd}) == {"odd": odd}


def test_a_mapping_of_very_many_names_is_cut_where_the_room_ends() -> None:
    huge = {f"name {number}": number for number in range(200_000)}

    hidden = hide_in(huge, most=1000)

    assert 0 < len(hidden) <= 100_001
    assert all(hidden[name] == huge[name] for name in list(hidden)[:-1])


def test_the_names_of_a_value_that_contains_itself_are_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[str] = []

    def look(text: str) -> str:
        looked_at.append(text)
        return text

    loop: dict[str, object] = {}
    loop |= dict.fromkeys(map(str, range(10)), loop)
    monkeypatch.setattr(arguments, "hide_key", look)

    hide_in(loop)

    assert len(looked_at) == 10
