"""The body of the create-model request, which registers a new model at a HUB.

Promises strict JSON values and no path of this machine in the model's name. Refuses nothing: an argument of
another type is sent as its text, and a number that JSON cannot have as null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from hubqueue.domain.arguments import hide_in, hide_secrets, hide_text, warn_lost
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.identifier import FILE_SUFFIXES, Identifier
from hubqueue.domain.plain import plain, whole

_NUMBERS = {"batch": -1, "epochs": 300, "imgsz": 640, "patience": 100}
_LONGEST_LIST = 100


def registration(model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft | None:
    """The draft for the start of a training: the registration of a model that is new to the HUB."""
    # A file of which the HUB has a model already is that of a run whose outbox was replaced.
    if model.filename is None or model.model_id is not None or continues:
        return None
    return registration_draft(model.filename, args)


def registration_draft(model: str, args: Mapping[str, object]) -> Draft:
    """The registration of a new model: the HUB's create-model payload."""
    return Draft(
        Kind.REGISTRATION, "registration", 0, json.dumps(create_model_payload(model, hide_secrets(args)))
    )


def create_model_payload(model: str | PathLike[str], args: Mapping[str, object]) -> dict[str, Any]:
    """The JSON object that registers `model` (a .pt, .yaml or .yml file, with or without folders) at a HUB.

    `args` are the training arguments: `data`, `batch`, `epochs`, `imgsz`, `patience`, `device`, `cache`; the
    others are not sent. Defaults and shape match the HUB's own training session. `device` and `cache` are always
    text: None becomes "None", False becomes "False".
    """
    name = _file_name(model)
    numbers = {each: _plain(args.get(each, default)) for each, default in _NUMBERS.items()}
    lost = [each for each, number in numbers.items() if number is None and args.get(each) is not None]
    if lost:
        warn_lost(lost)
    return {
        "config": {
            "batchSize": numbers["batch"],
            "epochs": numbers["epochs"],
            "imageSize": numbers["imgsz"],
            "patience": numbers["patience"],
            "device": hide_text(args.get("device", "")),
            "cache": hide_text(args.get("cache", "ram")),
        },
        "dataset": {"name": _dataset(args.get("data"))},
        "lineage": {
            "architecture": {"name": _architecture(name)},
            "parent": {"name": name} if name.endswith(".pt") else {},
        },
        "meta": {"name": name},
    }


def _file_name(model: str | PathLike[str]) -> str:
    # Both separators: a path written on Windows may reach a run on another system.
    return re.split(r"[/\\]", fspath(model))[-1]


def _architecture(name: str) -> str:
    for suffix in FILE_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _dataset(data: object) -> str:
    # A dataset may be an address that contains a key, and the outbox stores this text.
    return "" if data is None else hide_text(data)


def _plain(value: object) -> object:
    """`value` for JSON: numbers, text, null and lists of them; text for other types, null for what cannot be sent."""
    known = plain(value)
    if isinstance(known, dict) or (isinstance(known, list) and len(known) > _LONGEST_LIST):
        return hide_text(value)
    is_large = isinstance(known, int) and whole(known) is None
    return None if is_large else hide_in(known)
