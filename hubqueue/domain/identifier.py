"""A model identifier written by a person, and the rules for reading it that all destinations share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hubqueue.domain.redact import MASK, clean, safe_url

FILE_SUFFIXES = (".pt", ".yaml", ".yml")
# Only those of files with a model: `llama-3.1` and `vit_base_patch16_224.augreg` are whole names.
_SUFFIX = re.compile(r"(?<=.)\.(?:pt|pth|ckpt|bin|safetensors|onnx|keras|h5|yaml|yml)\Z", re.IGNORECASE)
_LONGEST_STEM = 100


@dataclass(frozen=True, slots=True)
class Identifier:
    """A model that the destination has (`model_id`), or a file to register a new one from (`filename`).

    Exactly one of the two is set. `api_key` is a key found inside the identifier; `repr` does not show it.
    """

    api_key: str | None = field(default=None, repr=False)
    model_id: str | None = None
    filename: str | None = None


def is_model_file(written: str) -> bool:
    """Whether the text is the name of a model file, with or without folders."""
    stem = re.split(r"[/\\]", written)[-1].rpartition(".")[0]
    return written.endswith(FILE_SUFFIXES) and stem != "" and "\0" not in written


def as_file(name: str) -> str:
    """A model's name as the name of a file, which a hub accepts for registration: `org/bert` becomes `bert.pt`."""
    stem = re.sub(r"[^\w.-]+", "-", re.split(r"[/\\]", name.rstrip("/\\"))[-1]).strip("-.") or "model"
    return stem if stem.endswith(FILE_SUFFIXES) else f"{stem}.pt"


def printable(filename: str) -> str:
    """The name of a file as a hub can show it: control characters and bytes that are no text become U+FFFD."""
    return "".join(each if each.isprintable() else "\ufffd" for each in filename)


def default_name(model: str, run_id: str) -> str:
    """The name of a run that the training did not name: the model without folders and suffix, and the id of the run.

    Like every name of a run it has no slash, no leading dot and no control character.
    """
    stem = _SUFFIX.sub("", re.split(r"[/\\]", printable(model).rstrip("/\\"))[-1])
    stem = stem[:_LONGEST_STEM].strip().lstrip(".").strip()
    return f"{stem or 'run'}-{run_id}"


def shown(written: str) -> str:
    """The identifier for use in a message: without a query, and without any word long enough to be a key."""
    if "://" in written:
        text = re.sub(r"[0-9A-Za-z_]{24,}", MASK, safe_url(written))
    else:
        text = re.sub(r"\S{24,}", MASK, written)
    return repr(clean(text, limit=80))
