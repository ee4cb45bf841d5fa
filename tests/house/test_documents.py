"""The documents agree with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from hubqueue.cli import main
from hubqueue.config.reader import parse
from hubqueue.domain.lifecycle import MOVES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROMISES = (
    "durable",
    "proof",
    "accounted",
    "isolated",
    "paced",
    "harmless",
    "identity",
    "bounded",
    "secret",
    "honest",
    "addressed",
)


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def blocks(path: Path, *languages: str) -> list[str]:
    return [
        body
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        if language in languages
    ]


def test_the_python_of_the_documents_compiles() -> None:
    for path in DOCUMENTS:
        for block in blocks(path, "python"):
            compile(block, str(path), "exec")


def test_the_commands_of_the_documents_exist() -> None:
    known = {names[0] for names, _ in commands()}
    said = {
        (path.name, name)
        for path in DOCUMENTS
        for _, name in re.findall(
            r"^\s*(?:\$ )?(?:\S+=\S+ )*hubqueue ((?:--\w+ \S+ )*)([a-z]\w*)",
            "\n".join(blocks(path, "console", "sh", "bash")),
            re.MULTILINE,
        )
    }

    assert said
    assert {(path, name) for path, name in said if name not in known} == set()


def test_the_links_of_the_documents_lead_somewhere() -> None:
    links = {
        (path, target, heading)
        for path in DOCUMENTS
        for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text())
        if "://" not in target
    }
    ends = {path.parent / target if target else path for path, target, _ in links}
    found = {end: headings(end) if end.suffix == ".md" else set() for end in ends if end.exists()}

    assert links
    assert {
        f"{path.relative_to(ROOT)}: {target}#{heading}"
        for path, target, heading in links
        for end in [path.parent / target if target else path]
        if end not in found or (heading and heading not in found[end])
    } == set()


def headings(path: Path) -> set[str]:
    """The headings of a document as the end of a link."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def test_every_command_and_option_has_help_and_an_example() -> None:
    for names, command in commands():
        assert command.help, names
        if not isinstance(command, click.Group):
            assert "Example" in command.help, names
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (names, parameter.name)


def test_every_command_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text()

    for names, command in commands():
        assert f"hubqueue {' '.join(names)}" in manual
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert any(option in manual for option in parameter.opts), (names, parameter.opts)


def test_every_move_is_in_the_manual() -> None:
    rows = set(
        re.findall(
            r"^\| *`?(\w+)`? *\| *`?([\w—]+)`? *\| *`?([\w—]+)`? *\|",
            (ROOT / "docs" / "lifecycle.md").read_text(),
            re.MULTILINE,
        )
    )
    moves = {
        (str(move), "—" if source is None else str(source), "—" if target is None else str(target))
        for move, pairs in MOVES.items()
        for source, target in pairs
    }

    assert moves <= rows
    known = {str(move) for move in MOVES}
    assert {row for row in rows if row[0] in known} == moves


def test_the_example_configuration_is_the_default() -> None:
    assert parse((ROOT / "config.example.toml").read_text(), {}, source="example") == parse(
        "", {}, source="nothing"
    )


def test_every_promise_has_a_heading_and_a_test_file() -> None:
    readme = (ROOT / "README.md").read_text()
    for number, name in enumerate(PROMISES, 1):
        assert re.search(rf"^#+ P{number} {name}", readme, re.MULTILINE | re.IGNORECASE), f"P{number} {name}"
        assert (ROOT / "tests" / "promises" / f"test_p{number}_{name}.py").exists()


def test_the_changelog_knows_this_version() -> None:
    from hubqueue import __version__

    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_tests_that_the_threats_name_are_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "threats.md").read_text()))

    assert named
    assert {path for path in named if not (ROOT / path).exists()} == set()
