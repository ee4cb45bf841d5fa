"""`hubqueue config`: the values of settings, an example and the schema, as text and as JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import bucket
import jsonschema
import pytest
from stage import environ_of, hubqueue

from hubqueue.config.names import unread
from hubqueue.config.reference.example import example
from hubqueue.config.reference.schema import schema

SECRET = "hunter2hunter2"
FILE = """
default_destination = "hub"
spool.max_bytes = "5 GB"
rate_limits.ckpt = 60
[destinations.hub]
url = "https://hub.example.org"
"""


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    found = environ_of(home, "https://hub.example.org")
    ours = [name for name in found if name.startswith(("HUBQUEUE_", "ULTRALYTICS_"))]
    return {name: value for name, value in found.items() if name == "HUBQUEUE_HOME" or name not in ours}


@pytest.fixture
def file(home: Path) -> Path:
    home.mkdir(exist_ok=True)
    home.chmod(0o700)
    path = home / "config.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def shown(environ: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hubqueue(environ, "config", "show", "--json").stdout)
    return found


def row(environ: dict[str, str], key: str) -> tuple[object, ...]:
    (found,) = [each for each in shown(environ)["settings"] if each["key"] == key]
    return found["value"], found["from"], found["variable"]


def test_each_setting_shows_its_source(environ: dict[str, str], file: Path) -> None:
    environ |= {"HUBQUEUE_RATE_LIMITS__METRICS": "1.5 s", "HUBQUEUE_DESTINATIONS__HUB__INSECURE": "yes"}

    assert shown(environ)["file"] == str(file)
    assert row(environ, "spool.max_bytes") == (5_000_000_000, "file", None)
    assert row(environ, "rate_limits.metrics") == (1.5, "variable", "HUBQUEUE_RATE_LIMITS__METRICS")
    assert row(environ, "retry.cap") == (300, "default", None)
    assert row(environ, "spool.path") == (None, "default", None)
    assert row(environ, "destinations.hub.insecure")[:2] == (True, "variable")
    # A default that is derived from another setting has the source of that setting.
    assert row(environ, "destinations.hub.web_url") == ("https://hub.example.org", "file", None)
    assert row(environ, "destinations.hub.rate_limits.ckpt") == (60, "file", None)
    assert row(environ, "destinations.hub.rate_limits.metrics")[1] == "variable"


def test_the_text_shows_values_in_the_form_of_the_file(environ: dict[str, str], file: Path) -> None:
    done = hubqueue(environ, "config", "show")

    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == f"file: {file}"
    assert 'spool.max_bytes "5 GB" file' in lines
    assert 'rate_limits.heartbeat "5 min" default' in lines
    assert "spool.path (spool in the home) default" in lines
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_file_is_reported(environ: dict[str, str], home: Path) -> None:
    assert shown(environ)["file"] is None
    first = hubqueue(environ, "config", "show").stdout.splitlines()[0]
    assert first == f"file: none ({home / 'config.toml'} does not exist)"


def test_passwords_are_masked(environ: dict[str, str]) -> None:
    environ |= {
        "HUBQUEUE_OUTBOX__URL": f"postgresql+psycopg://me:{SECRET}@db/outbox?password={SECRET}",
        "HUBQUEUE_DESTINATIONS__HUB__PROXY": f"http://me:{SECRET}@proxy:3128",
    }

    for command in (("config", "show"), ("config", "show", "--json")):
        done = hubqueue(environ, *command)

        assert SECRET not in done.stdout + done.stderr
        assert "postgresql+psycopg://***@db/outbox" in done.stdout
        assert "http://***@proxy:3128" in done.stdout


def test_an_invalid_configuration_is_an_error(environ: dict[str, str]) -> None:
    done = hubqueue(environ | {"HUBQUEUE_RATE_LIMITS__METRICS": "soon"}, "config", "show")

    assert done.returncode == 2
    assert (
        'HUBQUEUE_RATE_LIMITS__METRICS must be a number of seconds or a text such as "15 min"' in done.stderr
    )


def test_a_variable_that_nothing_reads_is_a_warning(environ: dict[str, str]) -> None:
    environ |= {
        "HUBQUEUE_FOO": SECRET,
        "HUBQUEUE_KEY_HBU": SECRET,
        "HUBQUEUE_HOM": "x",
        "HUBQUEUE_KEY_HUB": SECRET,
    }
    warnings = [
        "HUBQUEUE_FOO is set, but hubqueue does not read it",
        "HUBQUEUE_HOM is set, but hubqueue does not read it; did you mean HUBQUEUE_HOME?",
        "HUBQUEUE_KEY_HBU is set, but no destination has this name; did you mean HUBQUEUE_KEY_HUB?",
    ]

    checked = hubqueue(environ, "check", "--offline")
    done = hubqueue(environ, "config", "show")

    assert [line[20:] for line in checked.stdout.splitlines() if line.startswith("warn")] == warnings
    assert done.stderr.splitlines() == [f"warning: {each}" for each in warnings]
    assert shown(environ)["warnings"] == warnings
    assert SECRET not in checked.stdout + checked.stderr + done.stdout
    without = {name: value for name, value in environ.items() if name not in ("HUBQUEUE_FOO", "HUBQUEUE_HOM")}
    assert checked.returncode == hubqueue(without, "check", "--offline").returncode


def test_the_variables_that_hubqueue_reads_are_no_warning() -> None:
    read = [
        "HUBQUEUE_HOME",
        "HUBQUEUE_CONFIG",
        "HUBQUEUE_DEFAULT_DESTINATION",
        "HUBQUEUE_RUN",
        "HUBQUEUE_IS_WORKER",
    ]
    read += ["HUBQUEUE_KEY_MY_LAB", "HUBQUEUE_OUTBOX__URL", "OTHER"]

    assert unread(dict.fromkeys(read, "x"), ["my-lab"]) == ()
    assert unread({"HUBQUEUE_FOO": ""}, []) == ()


def test_the_example_is_the_one_of_the_repository(environ: dict[str, str]) -> None:
    assert hubqueue(environ, "config", "example").stdout == example()


def test_the_schema_is_printed_and_fits_the_example(environ: dict[str, str]) -> None:
    printed = json.loads(hubqueue(environ, "config", "schema").stdout)

    assert printed == schema()
    jsonschema.Draft202012Validator(printed).validate(tomllib.loads(example()))


def test_a_destination_type_of_another_package_is_in_all_of_them(
    environ: dict[str, str], tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    with bucket.installed(packages):
        environ |= {
            "PYTHONPATH": str(packages),
            "HUBQUEUE_DESTINATIONS__LAB__TYPE": "bucket",
            "HUBQUEUE_DESTINATIONS__LAB__REGION": "us-east-1",
        }

        assert row(environ, "destinations.lab.region") == (
            "us-east-1",
            "variable",
            "HUBQUEUE_DESTINATIONS__LAB__REGION",
        )
        assert row(environ, "destinations.lab.part_bytes") == (8_388_608, "default", None)
        assert "\n[destinations.bucket]" in hubqueue(environ, "config", "example").stdout
        assert "destination-bucket" in json.loads(hubqueue(environ, "config", "schema").stdout)["$defs"]
