"""The identifiers of a model of Platform: a model file, or a model id."""

from __future__ import annotations

import re
from os import PathLike, fspath

from hubqueue.domain.errors import InvalidModel
from hubqueue.domain.identifier import Identifier, is_model_file, printable, shown

_ID = re.compile(r"[0-9A-Za-z_-]{16,64}")


def parse(identifier: str | PathLike[str]) -> Identifier:
    """Read an identifier. Raises `InvalidModel` if it is neither a model file nor a model id."""
    written = fspath(identifier).strip()
    if "://" not in written and is_model_file(written):
        return Identifier(filename=printable(written))
    if _ID.fullmatch(written):
        return Identifier(model_id=written)
    raise InvalidModel(
        f"{shown(written)} is not a model file or id", hint="give a .pt, .yaml or .yml file, or a model id"
    )
