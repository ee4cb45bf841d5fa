"""The identifiers of a model of a HUB: a HUB address, a key with a model id, a model id, or a model file.

Promises to read every form that either generation of the HUB's own client accepted, each in one way only.
Refuses the rest with a message that names the forms and never repeats a key. Reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from os import PathLike, fspath
from urllib.parse import SplitResult, parse_qs, urlsplit

from hubqueue.domain.errors import InvalidModel
from hubqueue.domain.identifier import Identifier, is_model_file, printable, shown
from hubqueue.domain.redact import safe_url

_HUB_HOST = "hub.ultralytics.com"
_MODEL_ID = re.compile(r"[0-9A-Za-z]{20}")
_KEY_AND_ID = re.compile(r"([0-9A-Za-z]{42})_([0-9A-Za-z]{20})")
_KEY = re.compile(r"[!-~]{1,512}")


def names_hub(identifier: str | PathLike[str]) -> bool:
    """Whether an identifier has a form that only a HUB accepts: an address, or KEY_MODELID."""
    written = fspath(identifier).strip()
    return "://" in written or _KEY_AND_ID.fullmatch(written) is not None


def parse(
    identifier: str | PathLike[str], *, web_url: str, exists: Callable[[str], bool] | None = None
) -> Identifier:
    """Read an identifier for a HUB. `web_url` is the web root of the destination, as in its settings.

    `exists` returns whether a file with a name exists: then 20 letters and digits are the name of a file, else a model
    id. Without `exists` they are a model id. Raises `InvalidModel` for every other form.
    """
    written = fspath(identifier).strip()
    if re.match(r"https?://", written, re.IGNORECASE):
        # Before the file rule: an address may end in .pt as well.
        return _from_address(written, web_url)
    if is_model_file(written):
        # Before the model id rule: yolov8n-custom-17.pt has 20 characters too.
        return Identifier(filename=printable(written))
    if found := _KEY_AND_ID.fullmatch(written):
        return Identifier(api_key=found[1], model_id=found[2])
    if _MODEL_ID.fullmatch(written):
        if exists is not None and exists(written):
            return Identifier(filename=printable(written))
        return Identifier(model_id=written)
    raise InvalidModel(f"{shown(written)} is not a model file, URL or id", hint=_forms(web_url))


def _from_address(written: str, web_url: str) -> Identifier:
    root = urlsplit(web_url)
    try:
        parts = urlsplit(written)
        is_home = _origin(parts) == _origin(root)
        is_hub = _origin(parts) == (_HUB_HOST, None)
    except ValueError:
        raise InvalidModel(f"{shown(written)} is not a URL", hint=_forms(web_url)) from None
    prefix = root.path.rstrip("/") + "/models/" if is_home else "/models/"
    if "@" in parts.netloc or not (is_home or is_hub) or not parts.path.startswith(prefix):
        raise InvalidModel(f"{shown(written)} is not a model of {safe_url(web_url)}", hint=_forms(web_url))
    model_id = parts.path[len(prefix) :].removesuffix("/").removesuffix(".pt")
    if not _MODEL_ID.fullmatch(model_id):
        raise InvalidModel(f"{shown(written)} has no model id of 20 letters and digits", hint=_forms(web_url))
    return Identifier(api_key=_key_of(parts, web_url), model_id=model_id)


def _origin(parts: SplitResult) -> tuple[str | None, int | None]:
    """Host and port, without the scheme: nothing is sent to this address, it only names a model."""
    port = parts.port
    return parts.hostname, None if port in (80, 443) else port


def _key_of(parts: SplitResult, web_url: str) -> str | None:
    keys = parse_qs(parts.query, max_num_fields=50).get("api_key", [])
    if not keys:
        return None
    if len(set(keys)) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidModel("the api_key in the model's URL cannot be a key", hint=_forms(web_url))
    return keys[0]


def _forms(web_url: str) -> str:
    """The hint with all valid forms; the address is that of the models of this hub."""
    return (
        f"give the model's URL ({safe_url(web_url).rstrip('/')}/models/MODEL_ID), a model id (20 letters and digits), "
        "KEY_MODELID, or a .pt, .yaml or .yml file"
    )
