"""Every way to name a model, of both generations of the HUB's client."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from hubqueue.destinations.hub.identifier import Identifier, parse
from hubqueue.domain.errors import InvalidModel
from hubqueue.domain.identifier import as_file

WEB = "https://hub.ultralytics.com"
ID = "AbcDEF0123456789wxyz"
KEY = "0123456789abcdef0123456789abcdef0123456789"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (f"{WEB}/models/{ID}", Identifier(model_id=ID)),
        (f"{WEB}/models/{ID}/", Identifier(model_id=ID)),
        (f"  {WEB}/models/{ID}\n", Identifier(model_id=ID)),
        (f"http://hub.ultralytics.com/models/{ID}", Identifier(model_id=ID)),
        (f"https://HUB.Ultralytics.com/models/{ID}", Identifier(model_id=ID)),
        (f"https://hub.ultralytics.com:443/models/{ID}", Identifier(model_id=ID)),
        (f"http://hub.ultralytics.com:80/models/{ID}", Identifier(model_id=ID)),
        (f"{WEB}/models/{ID}.pt", Identifier(model_id=ID)),
        (f"{WEB}/models/{ID}?tab=deploy#top", Identifier(model_id=ID)),
        (f"{WEB}/models/{ID}?api_key={KEY}", Identifier(api_key=KEY, model_id=ID)),
        (f"{WEB}/models/{ID}/?tab=x&api_key={KEY}", Identifier(api_key=KEY, model_id=ID)),
        (f"{WEB}/models/{ID}?api_key=", Identifier(model_id=ID)),
        (f"{KEY}_{ID}", Identifier(api_key=KEY, model_id=ID)),
        (ID, Identifier(model_id=ID)),
        ("yolov8n.pt", Identifier(filename="yolov8n.pt")),
        ("yolov8n.yaml", Identifier(filename="yolov8n.yaml")),
        ("yolov8n.yml", Identifier(filename="yolov8n.yml")),
        ("runs/train/weights/last.pt", Identifier(filename="runs/train/weights/last.pt")),
        ("C:\\models\\my model.pt", Identifier(filename="C:\\models\\my model.pt")),
    ],
)
def test_every_form_is_understood(written: str, meant: Identifier) -> None:
    assert parse(written, web_url=WEB) == meant


def test_a_file_name_of_twenty_characters_is_a_file() -> None:
    name = "yolov8n-custom-17.pt"

    assert len(name) == len(ID)
    assert parse(name, web_url=WEB) == Identifier(filename=name)


def test_a_path_is_a_file() -> None:
    assert parse(PurePosixPath("/data/best.pt"), web_url=WEB) == Identifier(filename="/data/best.pt")


def test_a_file_that_is_named_like_a_model_id_has_precedence() -> None:
    there = {ID}

    found = parse(ID, web_url=WEB, exists=there.__contains__)

    assert found == Identifier(filename=ID)


def test_a_model_id_without_such_a_file_stays_an_id() -> None:
    assert parse(ID, web_url=WEB, exists=lambda name: False) == Identifier(model_id=ID)


def test_a_hub_of_ones_own_has_its_own_addresses() -> None:
    web = "http://127.0.0.1:8080/hub"

    assert parse(f"{web}/models/{ID}", web_url=web) == Identifier(model_id=ID)
    assert parse(f"{web}/models/{ID}", web_url=f"{web}/") == Identifier(model_id=ID)


def test_an_address_of_the_public_hub_is_understood_by_every_destination() -> None:
    assert parse(f"{WEB}/models/{ID}", web_url="http://127.0.0.1:8080") == Identifier(model_id=ID)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "yolov8n",
        "model.PT",
        ".pt",
        "models/.yaml",
        ID[:-1],
        f"{ID}1",
        "abc\0.pt",
        f"{KEY[:-1]}_{ID}",
        f"{WEB}/models/",
        f"{WEB}/models/{ID}/preview",
        f"{WEB}/models/yolov8n.pt",
        f"{WEB}/datasets/{ID}",
        f"https://hub.ultralytics.com.evil.org/models/{ID}",
        f"https://evil.org/models/{ID}",
        f"https://hub.ultralytics.com:8443/models/{ID}",
        f"https://{KEY}@hub.ultralytics.com/models/{ID}",
        f"https://evil.org/yolov8n.pt?api_key={KEY}",
        f"ftp://hub.ultralytics.com/models/{ID}",
        "https://[::1/models/x",
        f"https://hub.ultralytics.com:port/models/{ID}",
        f"{WEB}/models/{ID}?api_key=a%0Ab",
        f"{WEB}/models/{ID}?api_key=first&api_key=second",
    ],
)
def test_everything_else_is_refused_with_a_list_of_the_valid_forms(written: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        parse(written, web_url=WEB)

    assert caught.value.hint is not None
    assert all(form in caught.value.hint for form in ("URL", "model id", "KEY_MODELID", ".pt", ".yaml"))


def test_a_refusal_names_the_address_of_this_hub() -> None:
    with pytest.raises(InvalidModel) as caught:
        parse("https://elsewhere.example.org/models/x", web_url="https://hub.example.org/")

    assert "(https://hub.example.org/models/MODEL_ID)" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("yolov8n", "'yolov8n' is not a model file, URL or id"),
        (f"{KEY}_short", "'***' is not a model file, URL or id"),
        (f"https://evil.org/x?api_key={KEY}", f"'https://evil.org/x' is not a model of {WEB}"),
        (f"{WEB}/models/short", f"'{WEB}/models/short' has no model id of 20 letters and digits"),
    ],
)
def test_a_refusal_shows_the_identifier_without_keys(written: str, shown: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        parse(written, web_url=WEB)

    assert str(caught.value) == shown


@pytest.mark.parametrize(
    "written",
    [
        f"https://evil.org/models/{ID}?api_key={KEY}",
        f"https://{KEY}@hub.ultralytics.com/models/{ID}",
        f"{WEB}/models/short?api_key={KEY}",
        f"{WEB}/models/{KEY}_{ID}",
        f"{KEY}_short",
        f"{KEY}0_{ID}",
        KEY,
        f"ul_{KEY[:-2]}",
    ],
)
def test_a_refusal_never_repeats_a_key(written: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        parse(written, web_url=WEB)

    assert KEY[:20] not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


def test_a_key_is_not_in_the_repr() -> None:
    assert KEY not in repr(parse(f"{KEY}_{ID}", web_url=WEB))


def test_a_typo_beside_a_key_with_special_characters_does_not_reveal_the_key() -> None:
    key = "Zk7+r=&4<mQ~9x/a" * 3

    with pytest.raises(InvalidModel) as caught:
        parse(f"{key}_abcdefghij012345678", web_url="https://hub.ultralytics.com")

    assert key[:8] not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("yolov8n.pt", "yolov8n.pt"),
        ("google/bert base", "bert-base.pt"),
        ("C:\\models\\small.yaml", "small.yaml"),
        ("out/run-1/", "run-1.pt"),
        ("...", "model.pt"),
        ("", "model.pt"),
    ],
)
def test_any_name_of_a_model_can_be_that_of_a_file(name: str, file: str) -> None:
    assert as_file(name) == file
