"""Plain words: the code and the documents use the standard terms of the field, no idioms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *(path for path in (ROOT / "hubqueue").rglob("*") if path.suffix in {".py", ".html"}),
    *(path for path in (ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "config.example.toml")),
)
# Each idiom, with the words to use instead.
IDIOMS = {
    # Case-sensitive: `is None` is code.
    r"(?-i:(?<!there )\b(?:is|are) none\b)": "invalid; no ...",
    r"\b(?:told|hears)\b": "response, payload, report; receives",
    r"\b(?:goes on|gone on with)\b": "continues, is resumed",
    r"\bwants? to hear\b": "expects, requires",
    r"\bgets? to see\b": "sees",
    r"\bguilty\b": "bad, invalid",
    r"\bmischief\b": "injected faults",
    r"\btryout\b": "sandbox",
    r"\bsigns? of life\b": "heartbeat",
    r"\ba word to\b": "marks ... as; reports to",
    r"\bthe seed\b": "the original `HUBTrainingSession`; the random seed",
    r"\bwhoever\b": "the process that, the person who",
    r"\bby itself\b": "automatically; alone",
    r"\b(?:is|are) at work\b": "runs, sends",
    r"\btakes? leave\b": "removes",
    r"\blooks around\b": "scans",
    r"\bin the way of\b": "prevents, blocks",
    r"\bstands? in the (?:place|way)\b": "replaces; prevents",
    r"\bwhere to read on\b": "further reading",
}
PATTERN = re.compile("|".join(f"(?:{idiom})" for idiom in IDIOMS), re.IGNORECASE)


def test_no_file_has_an_idiom() -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {hit[0]!r}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for hit in PATTERN.finditer(line)
    ]

    assert not hits, "use plain words (see IDIOMS):\n" + "\n".join(hits)


@pytest.mark.parametrize(
    ("line", "idioms"),
    [
        ("an address that is none is refused", ["is none"]),
        ("if port is None:  # the port is none yet", ["is none"]),
        ("The run goes on; the worker is told by itself", ["goes on", "told", "by itself"]),
        ("It prints the random seed and the total", []),
        ("The response is invalid and the run continues", []),
    ],
)
def test_an_idiom_is_found_wherever_it_is_in_a_line(line: str, idioms: list[str]) -> None:
    assert [hit[0] for hit in PATTERN.finditer(line)] == idioms
