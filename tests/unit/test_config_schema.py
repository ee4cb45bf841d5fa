"""The JSON Schema accepts what the reader accepts, and refuses what it can."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import bucket
import jsonschema
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from hubqueue.config.config import Config
from hubqueue.config.reader import parse
from hubqueue.config.reference.example import example, in_toml
from hubqueue.config.reference.schema import schema
from hubqueue.config.registry import BUILT_IN, built_in
from hubqueue.config.setting import Setting, places
from hubqueue.domain.errors import ConfigError

SCHEMA = schema()
CHECKER = jsonschema.Draft202012Validator(SCHEMA)


def problems_of(text: str) -> tuple[str, ...]:
    try:
        parse(text, {"HOME": "/home/me"}, source="x")
    except ConfigError as error:
        return error.problems
    return ()


def refusals_of(text: str) -> list[str]:
    return [error.message for error in CHECKER.iter_errors(tomllib.loads(text))]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_the_example_is_valid() -> None:
    assert refusals_of(example()) == []
    assert refusals_of("") == []


def test_every_setting_has_a_description_and_its_default_or_an_example() -> None:
    shown = {("properties", *_in_properties(path)): setting for path, setting in places(Config)}
    for each in built_in():
        root = ("$defs", f"destination-{each.type}", "properties")
        shown |= {(*root, *_in_properties(path)): setting for path, setting in places(each.settings)}
    for path, setting in shown.items():
        found = SCHEMA
        for part in path:
            found = found[part]
        assert found["description"]
        if path[-1] != "type":
            assert setting.has_value == ("default" in found) != ("examples" in found), path


def _in_properties(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for key in path for part in (key, "properties"))[:-1]


# --- what the reader takes, the schema takes

GOOD = {
    "seconds": st.integers(0, 1000)
    | st.floats(0, 1000)
    | st.sampled_from(["15 min", " 7days", "1 h 30 min", "1w"]),
    "bytes": st.integers(1, 2**63 - 1) | st.sampled_from(["20 GB", "512 MiB", "1.5tib", "7 bytes", " 1 kB "]),
    "bytes per second": st.integers(1, 10**6) | st.just("32 KiB"),
    "threads": st.integers(1, 9),
    "entries": st.integers(1, 9),
    "requests": st.integers(0, 9),
    "uploads": st.integers(0, 9),
    "yes or no": st.booleans(),
    "path": st.sampled_from(["/x", "~/x", "//x", "/x y/ä"]),
    "word": st.sampled_from(["auto", "sqlite3", "hub", "platform"]),
    "name": st.sampled_from(["hub", "lab", "platform", "a-b"]),
    "hosts": st.lists(st.sampled_from(["a.example.org", " B:9000 ", "", "[::1]:9", "::1"]), max_size=3),
    "URL": st.sampled_from(
        [
            "https://a.example.org",
            "HTTPS://A.example.org:8443/x/@/",
            "http://[::1]:80",
            "http://localhost",
            "sqlite:////x",
            "postgresql+psycopg://u:p@h/n?x=1#y",
        ]
    ),
}
BAD = st.sampled_from(
    [
        -1,
        0,
        1.5,
        2**63,
        True,
        "",
        " ",
        "x",
        "5",
        "15 m",
        "-5 s",
        [],
        ["a/b"],
        [3],
        {},
        {"x": 1},
        "http://u@h",
        "a\nb",
    ]
)


def _values(setting: Setting) -> st.SearchStrategy[object]:
    usual = st.just(setting.form.written(setting.default)) if setting.has_value else st.just(setting.example)
    # Now and then something else, or hardly a configuration would be accepted.
    return st.integers(0, 30).flatmap(lambda n: BAD if n == 0 else usual | GOOD.get(setting.form.unit, usual))


def _tables(holder: type) -> st.SearchStrategy[dict[str, object]]:
    """Some settings of a class and of the tables in it, by their dotted keys."""
    each = {".".join(path): _values(setting) for path, setting in places(holder)}
    return st.fixed_dictionaries({}, optional=each).map(lambda found: dict(list(found.items())[:6]))


DESTINATIONS = st.dictionaries(
    st.sampled_from(["hub", "platform", "lab", "a-b", "Lab", "a" * 41]),
    st.sampled_from([each.settings for each in built_in()]).flatmap(_tables),
    max_size=3,
)


@given(_tables(Config), DESTINATIONS)
def test_the_schema_accepts_what_the_reader_accepts(
    tables: dict[str, object], destinations: dict[str, dict[str, object]]
) -> None:
    lines = [f"{key} = {_toml(value)}" for key, value in tables.items()]
    for name, settings in destinations.items():
        lines += [f"[destinations.{name}]", *(f"{key} = {_toml(value)}" for key, value in settings.items())]
    text = "\n".join(lines)

    accepted = problems_of(text) == ()
    event("accepted" if accepted else "refused")
    if accepted:
        assert refusals_of(text) == [], text


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return repr(value) if isinstance(value, float) else in_toml(value)


# --- what the reader refuses, the schema refuses where it can


@pytest.mark.parametrize(
    "text",
    [
        "zzz = 3",
        "outbox = 3",
        "rate_limit = {metrics = 1}",
        "rate_limits.metric = 1",
        "rate_limits.ckpt = -1",
        "rate_limits.ckpt = true",
        "rate_limits.ckpt = 'soon'",
        "rate_limits.ckpt = '5'",
        "rate_limits.ckpt = 1e300",
        "worker.lease = 0",
        "worker.ckpt_threads = 0",
        "worker.ckpt_threads = '2'",
        "spool.max_bytes = 2.5",
        "spool.max_bytes = '20 G'",
        "spool.path = 'spool'",
        "spool.path = ''",
        "outbox.driver = 'mysql'",
        "outbox.url = '/x.db'",
        "outbox.keep_attempts = 1979-05-27",
        "default_destination = ' '",
        "default_destination = []",
        "default_destination = ['hub', 'hub']",
        "default_destination = ['hub', 3]",
        "destinations = []",
        "destinations.Lab = {}",
        f"destinations.{'a' * 41} = {{}}",
        "destinations.hub = 3",
        "destinations.hub.ulr = 'x'",
        "destinations.lab.api_key = 'x'",
        "destinations.hub.type = 'platfrom'",
        "destinations.hub.insecure = 1",
        "destinations.hub.url = 'ftp://example.org'",
        "destinations.hub.url = 'https://u:p@example.org'",
        "destinations.hub.url = 'https://example.org/?x=1'",
        "destinations.hub.url = 'https://exämple.org'",
        "destinations.hub.proxy = 'http://u:p@proxy'",
        "destinations.hub.upload_hosts = 'a.example.org'",
        "destinations.hub.upload_hosts = ['https://a.example.org']",
        "destinations.hub.rate_limits.metric = 1",
        "destinations.hub.rate_limits = 3",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    assert problems_of(text)
    assert refusals_of(text)


def test_the_keys_of_a_destination_are_those_of_its_type(tmp_path: Path) -> None:
    with bucket.installed(tmp_path):
        made = jsonschema.Draft202012Validator(schema((*BUILT_IN, "bucket")))
        valid = [
            "[destinations.lab]\ntype = 'bucket'\nregion = 'x'",
            "destinations.bucket.region = 'x'",
            "destinations.lab.url = 'https://a.example.org'",
        ]
        wrong = [
            "destinations.lab.region = 'x'",
            "destinations.hub.region = 'x'",
            "[destinations.bucket]\ntype = 'platform'\nregion = 'x'",
            "destinations.bucket.region = 3",
        ]

        for text in valid:
            assert not problems_of(text) and made.is_valid(tomllib.loads(text)), text
        for text in wrong:
            assert problems_of(text) and not made.is_valid(tomllib.loads(text)), text
        properties = made.schema["$defs"]["destination-bucket"]["properties"]
        assert properties["region"]["default"] == "eu-central-1"
        assert properties["uploads_per_minute"]["default"] == 7
