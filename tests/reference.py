"""Writes the generated parts of config.example.toml and docs/configuration.md: `make reference`."""

from __future__ import annotations

from pathlib import Path

from hubqueue.config.reference.example import example
from hubqueue.config.reference.manual import with_tables

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "docs" / "configuration.md"
EXAMPLE = ROOT / "config.example.toml"


def generated() -> dict[Path, str]:
    """The up-to-date text of each file with a generated part."""
    return {EXAMPLE: example(), MANUAL: with_tables(MANUAL.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
