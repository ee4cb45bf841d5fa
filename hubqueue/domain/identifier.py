"""What a person's identifier of a model says, and the part of reading it that all destinations share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hubqueue.domain.redact import MASK, clean, safe_url

FILE_SUFFIXES = (".pt", ".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Identifier:
    """A model that the destination knows (`model_id`), or a file to register a new one from (`filename`).

    Exactly one of the two is set. `api_key` came inside the identifier; no repr shows it.
    """

    api_key: str | None = field(default=None, repr=False)
    model_id: str | None = None
    filename: str | None = None


def is_model_file(written: str) -> bool:
    """Whether it is the name of a model file, with or without folders."""
    stem = re.split(r"[/\\]", written)[-1].rpartition(".")[0]
    return written.endswith(FILE_SUFFIXES) and stem != "" and written.isprintable()


def shown(written: str) -> str:
    """The identifier for a message: without a query, and without anything long enough to be a key."""
    if "://" in written:
        text = re.sub(r"[0-9A-Za-z_]{24,}", MASK, safe_url(written))
    else:
        text = re.sub(r"\S{24,}", MASK, written)
    return repr(clean(text, limit=80))
