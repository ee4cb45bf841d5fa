"""Problems of a configuration: all are reported, and none repeats a secret."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.config.reader import Config, DestinationSettings, parse, variable
from hubqueue.config.registry import BUILT_IN
from hubqueue.config.setting import places
from hubqueue.domain.errors import ConfigError

SECRET = "hunter2hunter2"


def read(text: str = "", **environ: str) -> Config:
    return parse(text, environ, source="/etc/hubqueue.toml")


def problems_of(text: str = "", **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value.problems


# --- what is refused


def test_every_problem_is_reported_at_once_with_its_source() -> None:
    text = """
        [rate_limit]
        metrics = 1
        [rate_limits]
        metric = 1
        ckpt = -1
        [retry]
        base = "1"
    """

    with pytest.raises(ConfigError) as caught:
        read(text, HUBQUEUE_WORKER__LEASE="soon")

    assert caught.value.problems == (
        "unknown section rate_limit; did you mean 'rate_limits'?",
        "unknown key rate_limits.metric; did you mean 'metrics'?",
        "rate_limits.ckpt must be 0 or more seconds",
        'retry.base must be a number of seconds or a text such as "15 min"',
        'HUBQUEUE_WORKER__LEASE must be a number of seconds or a text such as "15 min"',
    )
    assert caught.value.hint == "correct /etc/hubqueue.toml and the environment"


@pytest.mark.parametrize(
    ("text", "environ", "culprit"),
    [
        ("retry.base = -1", {}, "/etc/hubqueue.toml"),
        ("default_destination = 'x'", {}, "/etc/hubqueue.toml"),
        ("destinations.hub.url = 'http://example.org'", {}, "/etc/hubqueue.toml"),
        ("", {"HUBQUEUE_RETRY__BASE": "-1"}, "the environment"),
        ("", {"HUBQUEUE_DEFAULT_DESTINATION": "x"}, "the environment"),
        ("", {"ULTRALYTICS_HUB_API": "http://example.org"}, "the environment"),
    ],
)
def test_the_hint_names_only_the_source_of_the_problem(
    text: str, environ: dict[str, str], culprit: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)

    assert caught.value.hint == f"correct {culprit}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "rate_limits.ckpt = true",
            'rate_limits.ckpt must be a number of seconds or a text such as "15 min", not a boolean',
        ),
        ("rate_limits.ckpt = nan", "rate_limits.ckpt must be a finite number of seconds"),
        ("rate_limits.ckpt = inf", "rate_limits.ckpt must be a finite number of seconds"),
        ("rate_limits.ckpt = 1e300", "rate_limits.ckpt must be at most 315360000 seconds (ten years)"),
        ("worker.lease = 0", "worker.lease must be more than 0 seconds"),
        ("worker.lease = 1e-9", "worker.lease must be more than 0 seconds"),
        (
            "destinations.hub.connect_timeout = 0",
            "destinations.hub.connect_timeout must be more than 0 seconds",
        ),
        (
            "destinations.hub.answer_timeout = 0",
            "destinations.hub.answer_timeout must be more than 0 seconds",
        ),
        ("destinations.hub.stall_window = 0", "destinations.hub.stall_window must be more than 0 seconds"),
        ("spool.path = ' '", "spool.path must not be empty"),
        ("outbox.busy_timeout = 0", "outbox.busy_timeout must be more than 0 seconds"),
        ("worker.ckpt_threads = 0", "worker.ckpt_threads must be 1 or more threads"),
        ("spool.max_bytes = 0", "spool.max_bytes must be 1 or more bytes"),
        (
            "spool.max_bytes = 2e9",
            'spool.max_bytes must be a whole number of bytes or a text such as "20 GB", not a fraction',
        ),
        (
            "spool.max_bytes = true",
            'spool.max_bytes must be a whole number of bytes or a text such as "20 GB", not a boolean',
        ),
        (
            "spool.max_bytes = 9223372036854775808",
            "spool.max_bytes must be at most 9223372036854775807 bytes",
        ),
        ("spool.path = 'spool'", "spool.path must be an absolute path, or one that begins with ~/"),
        ("spool.path = ''", "spool.path must not be empty"),
        ("outbox.driver = 'mysql'", "outbox.driver must be 'auto' or 'pysqlite3' or 'sqlite3'"),
        (
            "outbox.url = '/tmp/x.db'",
            "outbox.url must be a database URL: sqlite:////PATH or postgresql+psycopg://HOST/NAME",
        ),
        ("retry.cap = 0.5", "retry.cap must not be less than retry.base"),
        ("outbox = 3", "outbox must be a table, not a whole number"),
        ("destinations = []", "destinations must be a table, not an array"),
        ("destinations.hub = 1979-05-27", "destinations.hub must be a table, not a date or time"),
        (
            "destinations.hub.rate_limits = 3",
            "destinations.hub.rate_limits must be a table, not a whole number",
        ),
        (
            "destinations.hub.type = 'platfrom'",
            f"destinations.hub.type must be {' or '.join(map(repr, BUILT_IN))}; did you mean 'platform'?",
        ),
        (
            "destinations.hub.insecure = 1",
            "destinations.hub.insecure must be true or false, not a whole number",
        ),
        ("destinations.hub.ulr = ''", "unknown key destinations.hub.ulr; did you mean 'url'?"),
        (
            "destinations.hub.rate_limit = {}",
            "unknown key destinations.hub.rate_limit; did you mean 'rate_limits'?",
        ),
        ("metrics = 3", "unknown key metrics; did you mean 'rate_limits.metrics'?"),
        ("zzz = 3", "unknown key zzz"),
        (
            "default_destination = 'hbu'",
            "default_destination is no destination that the configuration has; did you mean 'hub'?",
        ),
        (
            "default_destination = ['hub', 'patform']",
            "default_destination names a destination that the configuration does not have; did you mean 'platform'?",
        ),
        ("default_destination = ['hub', 'hub']", "default_destination must not name a destination twice"),
        ("default_destination = []", "default_destination must be a name, or an array of names"),
        ("default_destination = ['hub', 3]", "default_destination must be a name, or an array of names"),
        ("default_destination = 3", "default_destination must be a string, not a whole number"),
    ],
)
def test_an_invalid_value_is_reported_with_what_is_expected(text: str, problem: str) -> None:
    assert problems_of(text) == (problem,)


@pytest.mark.parametrize(
    "name",
    ["HUBQUEUE_RATE_LIMITS__METRIC", "HUBQUEUE_RATE_LIMIT__METRICS", "HUBQUEUE_RATE_LIMITS_METRICS"],
)
def test_a_misspelt_variable_is_refused_with_a_guess(name: str) -> None:
    assert problems_of(**{name: "1"}) == (
        f"unknown variable {name}; did you mean 'HUBQUEUE_RATE_LIMITS__METRICS'?",
    )


@pytest.mark.parametrize("name", ["My Lab", "a__b", "-a", "ä", "a" * 41])
def test_the_name_of_a_destination_fits_into_a_variable(name: str) -> None:
    (problem,) = problems_of(f'[destinations."{name}"]\n[destinations.hub]')

    assert "the name must be at most 40 small letters and digits" in problem


def test_a_name_of_forty_characters_is_not_too_long() -> None:
    assert "a" * 40 in read(f"[destinations.{'a' * 40}]").destinations


def test_two_destinations_cannot_share_their_variables() -> None:
    assert problems_of("[destinations.a-b]\n[destinations.a_b]\n[destinations.hub]") == (
        "destinations.a_b: its variables are those of 'a-b' too",
    )


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a = ", "line 1, column 5"),
        ("[outbox]\nurl = 'x", "line 2, column 9"),
        ("a = 1\na = 2\n", "line 2, column 6"),
        ("ok = 1\n[x", "line 2, column 3"),
    ],
)
def test_invalid_toml_is_reported_with_line_and_column(text: str, where: str) -> None:
    (problem,) = problems_of(text)

    assert problem.startswith("not valid TOML: ")
    assert where in problem


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "9" * 10_000])
def test_toml_that_makes_the_parser_fail_is_a_problem_too(text: str) -> None:
    (problem,) = problems_of(text)

    assert problem.startswith("not valid TOML: ")


# --- secrets


@pytest.mark.parametrize(
    "key", ["api_key", "apiKey", "token", "password", "hub-api-key", "client_secret", "credentials", "key"]
)
@pytest.mark.parametrize("section", ["", "[outbox]", "[destinations.hub]", "[destinations.hub.rate_limits]"])
def test_a_key_in_the_file_is_refused_with_the_command_that_stores_it(section: str, key: str) -> None:
    (problem,) = problems_of(f"{section}\n{key} = '{SECRET}'")

    assert "keys do not belong in the config file; use: hubqueue login " in problem


@pytest.mark.parametrize(
    ("setting", "login"),
    [
        ("api_key", "hubqueue login DESTINATION"),
        ("outbox.token", "hubqueue login DESTINATION"),
        ("destinations.lab.api_key", "hubqueue login lab"),
        ("destinations.lab.rate_limits.key", "hubqueue login lab"),
    ],
)
def test_the_refusal_of_a_key_in_the_file_names_the_login_of_its_destination(
    setting: str, login: str
) -> None:
    assert problems_of(f"{setting} = '{SECRET}'") == (
        f"{setting}: keys do not belong in the config file; use: {login}",
    )


def test_a_key_in_a_settings_variable_is_refused_with_the_right_variable() -> None:
    assert problems_of(HUBQUEUE_DESTINATIONS__HUB__API_KEY=SECRET) == (
        "unknown variable HUBQUEUE_DESTINATIONS__HUB__API_KEY; a key goes into HUBQUEUE_KEY_<DESTINATION>",
    )


SETTINGS = [".".join(path) for path, _ in places(Config)]
SETTINGS += [".".join(path) for path, _ in places(DestinationSettings, ("destinations", "hub"))]
SETTINGS += [
    "api_key",
    "outbox.token",
    "destinations.hub",
    "destinations.x.y",
    "worker",
    "zzz.key",
]
SHAPES = [
    "'{}'",
    "['{}']",
    "{{a = '{}'}}",
    "'https://u:{}@h'",
    "'https://h/?k={}'",
    "'http://{}'",
    '"\\u001b{}"',
    "{}",
]


@given(setting=st.sampled_from(SETTINGS), shape=st.sampled_from(SHAPES))
def test_no_problem_repeats_a_value(setting: str, shape: str) -> None:
    text = f"{setting} = {shape.format(SECRET)}"

    try:
        read(text)
    except ConfigError as error:
        assert SECRET not in f"{error} {error.hint} {error.__cause__!r}"
        assert all(problem.isprintable() for problem in error.problems)


@given(setting=st.sampled_from(SETTINGS), shape=st.sampled_from(SHAPES))
def test_no_problem_repeats_the_value_of_a_variable(setting: str, shape: str) -> None:
    try:
        read(**{variable(*setting.split(".")): shape.format(SECRET)})
    except ConfigError as error:
        assert SECRET not in f"{error} {error.hint} {error.__cause__!r}"


WORDS = st.sampled_from(
    ["outbox", "spool", "url", "destinations", "hub", "rate_limits", "metrics", "api_key", "x"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet="ab/:@\x1b", max_size=9)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=4)
)


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + value.replace("\x1b", "\\u001b") + '"' if isinstance(value, str) else str(value or 0)


@given(
    tables=st.dictionaries(WORDS, TREES, max_size=5),
    environ=st.dictionaries(WORDS.map(variable), st.text("a1:-/.e_")),
)
def test_any_toml_is_either_settings_or_problems(tables: dict[str, object], environ: dict[str, str]) -> None:
    text = "\n".join(f"{key} = {as_toml(value)}" for key, value in tables.items())
    tomllib.loads(text)

    try:
        config = parse(text, environ, source="x")
    except ConfigError as error:
        assert error.problems
    else:
        assert config.default_destination in config.destinations
