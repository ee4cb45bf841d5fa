"""The configuration: file and environment in, settings out."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from hubqueue.config.reader import (
    Config,
    DestinationSettings,
    RateLimits,
    RetrySettings,
    SpoolSettings,
    WorkerSettings,
    parse,
    variable,
)
from hubqueue.config.setting import places, settings_of, tables_of
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import ConfigError

SECRET = "hunter2hunter2"


def read(text: str = "", **environ: str) -> Config:
    return parse(text, environ, source="/etc/hubqueue.toml")


def problems_of(text: str = "", **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value.problems


# --- what is given


def test_an_empty_configuration_is_all_defaults() -> None:
    config = read()

    assert config == Config()
    assert list(config.destinations) == ["hub", "platform"]
    assert config.destinations["hub"] == HubSettings("hub")
    platform = config.destinations["platform"]
    assert (platform.type, platform.url) == ("platform", "https://platform.ultralytics.com")
    assert (platform.requests_per_minute, platform.uploads_per_minute) == (100, 10)
    assert config.implied == {"hub", "platform"}
    assert config.default_destination == "platform"
    assert config.rate_limits == RateLimits(timedelta(seconds=3), timedelta(minutes=15), timedelta(minutes=5))


def test_a_file_sets_every_kind_of_value() -> None:
    config = read(
        """
        default_destination = "lab"
        outbox = {url = "postgresql+psycopg://user:pw@db/outbox", driver = "sqlite3", busy_timeout = 0.25}
        spool = {path = "/data/spool", max_bytes = 5, min_free_bytes = 0}
        rate_limits.metrics = 0
        retry = {base = 2, cap = 2}
        worker = {lease = 5, ckpt_threads = 1}
        [destinations.hub]
        [destinations.lab]
        url = "https://lab.example.org:8443/hub/"
        ca_bundle = "/etc/ca.pem"
        proxy = "http://proxy:3128"
        rate_limits.ckpt = 1.5
        """
    )

    assert config.outbox.url == "postgresql+psycopg://user:pw@db/outbox"
    assert config.outbox.driver == "sqlite3"
    assert config.outbox.busy_timeout == timedelta(milliseconds=250)
    assert config.spool == SpoolSettings(Path("/data/spool"), 5, 0)
    assert config.retry == RetrySettings(timedelta(seconds=2), timedelta(seconds=2))
    assert config.worker == dataclasses.replace(WorkerSettings(), lease=timedelta(seconds=5), ckpt_threads=1)
    assert config.destination().name == "lab"
    assert config.destination("lab") == HubSettings(
        "lab",
        url="https://lab.example.org:8443/hub",
        web_url="https://lab.example.org:8443/hub",
        ca_bundle=Path("/etc/ca.pem"),
        proxy="http://proxy:3128",
        rate_limits=RateLimits(metrics=timedelta(0), ckpt=timedelta(seconds=1.5)),
    )


def test_a_variable_has_precedence_over_the_file_and_the_file_over_the_default() -> None:
    text = "rate_limits = {metrics = 10, ckpt = 20}"

    limits = read(text, HUBQUEUE_RATE_LIMITS__METRICS="1.5").rate_limits

    assert limits == RateLimits(timedelta(seconds=1.5), timedelta(seconds=20), timedelta(seconds=300))


def test_variables_reach_every_depth() -> None:
    config = read(
        "[destinations.my-lab]\n[destinations.other]",
        HUBQUEUE_DEFAULT_DESTINATION="my-lab",
        HUBQUEUE_SPOOL__MAX_BYTES="1_000",
        HUBQUEUE_SPOOL__PATH="~/spool",
        HUBQUEUE_DESTINATIONS__MY_LAB__URL="https://lab.example.org",
        HUBQUEUE_DESTINATIONS__MY_LAB__INSECURE="Yes",
        HUBQUEUE_DESTINATIONS__MY_LAB__RATE_LIMITS__CKPT="7",
        HOME="/home/me",
    )

    lab = config.destination()
    assert (lab.name, lab.url, lab.insecure) == ("my-lab", "https://lab.example.org", True)
    assert lab.rate_limits == RateLimits(ckpt=timedelta(seconds=7))
    assert config.spool == SpoolSettings(Path("/home/me/spool"), 1000)


# Another value than the default, as a variable has it: by unit, or by key.
OTHER = {
    "seconds": "17",
    "bytes": "17",
    "bytes per second": "17",
    "threads": "17",
    "entries": "17",
    "requests": "17",
}
OTHER |= {
    "uploads": "17",
    "URL": "https://x.example.org",
    "yes or no": "true",
    "path": "/x",
    "driver": "sqlite3",
}
OTHER |= {"outbox.url": "sqlite:////x", "cap": "1700", "hosts": "a.example.org, b.example.org"}


def test_every_setting_has_a_variable() -> None:
    before, checked = read(), 0
    holders = [(Config, ()), (HubSettings, ("destinations", "hub"))]
    for holder, root in holders:
        for path, setting in places(holder, root):
            value = OTHER.get(".".join(path)) or OTHER.get(path[-1]) or OTHER.get(setting.form.unit)
            if value is None:
                assert path[-1] in {"default_destination", "type"}
                continue

            after = read(**{variable(*path): value})

            assert at(after, path) != at(before, path), path
            checked += 1
    assert checked > 30


def at(holder: object, path: tuple[str, ...]) -> object:
    for part in path:
        holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
    return holder


def test_a_byte_order_mark_is_not_part_of_the_file() -> None:
    assert read("\ufeffrate_limits.metrics = 1").rate_limits.metrics == timedelta(seconds=1)


@pytest.mark.parametrize("yes", ["true", "yes", "on", "1", " TRUE "])
@pytest.mark.parametrize("no", ["false", "no", "off", "0"])
def test_a_variable_accepts_several_words_for_yes_and_no(yes: str, no: str) -> None:
    assert read(HUBQUEUE_DESTINATIONS__HUB__INSECURE=yes).destination("hub").insecure is True
    assert (
        read("destinations.hub.insecure = true", HUBQUEUE_DESTINATIONS__HUB__INSECURE=no)
        .destination("hub")
        .insecure
        is False
    )


def test_blanks_around_the_number_of_a_variable_do_not_matter() -> None:
    limits = read(HUBQUEUE_RATE_LIMITS__METRICS=" 1.5 ", HUBQUEUE_RATE_LIMITS__CKPT=" 2\n").rate_limits

    assert (limits.metrics, limits.ckpt) == (timedelta(seconds=1.5), timedelta(seconds=2))


def test_the_password_of_a_database_is_in_no_repr() -> None:
    config = read(f"outbox.url = 'postgresql+psycopg://user:{SECRET}@db/outbox'")

    assert config.outbox.url is not None and SECRET in config.outbox.url
    assert SECRET not in repr(config)


def test_settings_cannot_be_changed_afterwards() -> None:
    config = read()

    parts = [
        config,
        *(getattr(config, field.name) for field in dataclasses.fields(config)),
        config.destination(),
    ]
    for part in filter(dataclasses.is_dataclass, parts):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


def test_an_empty_variable_counts_as_unset() -> None:
    config = read(HUBQUEUE_OUTBOX__URL="", HUBQUEUE_RATE_LIMITS__METRICS="", ULTRALYTICS_HUB_API="")

    assert config == Config()


def test_home_config_and_keys_are_not_settings() -> None:
    config = read(HUBQUEUE_HOME="/x", HUBQUEUE_CONFIG="/y", HUBQUEUE_KEY_HUB=SECRET, HUB_API_KEY=SECRET)

    assert config == Config()


# --- destinations


def test_the_hubs_own_variables_replace_the_default_addresses() -> None:
    config = read(ULTRALYTICS_HUB_API="http://127.0.0.1:9/", ULTRALYTICS_HUB_WEB="http://127.0.0.1:9")

    hub = config.destination("hub")
    assert hub.url == hub.web_url == "http://127.0.0.1:9"
    assert hub.url_named


def test_a_hub_at_its_own_address_shows_its_runs_there() -> None:
    ours = read('destinations.hub.url = "https://hub.example.org"').destination("hub")
    theirs = read('destinations.hub.url = "https://api.ultralytics.com"').destination("hub")
    apart = read("destinations.hub = {url = 'https://a.example.org', web_url = 'https://b.example.org'}")

    assert ours.web_url == "https://hub.example.org"
    assert not ours.url_named
    assert theirs.web_url == "https://hub.ultralytics.com"
    assert apart.destination("hub").web_url == "https://b.example.org"


def test_an_address_of_file_or_variable_has_precedence_over_the_hubs_own_variables() -> None:
    elsewhere = {"ULTRALYTICS_HUB_API": "https://elsewhere.example.org"}

    in_file = read('destinations.hub.url = "https://a.example.org"', **elsewhere)
    in_variable = read(**elsewhere, HUBQUEUE_DESTINATIONS__HUB__URL="https://b.example.org")

    assert in_file.destination("hub").url == "https://a.example.org"
    assert in_variable.destination("hub").url == "https://b.example.org"


def test_the_only_destination_is_the_default_one() -> None:
    config = read("[destinations.lab]")

    assert config.default_destination == "lab"
    assert set(config.destinations) == {"lab"}


def test_a_run_may_have_several_default_destinations() -> None:
    tables = "[destinations.a]\n[destinations.b]"

    in_file = read(f'default_destination = ["b", "a"]\n{tables}')
    in_variable = read(tables, HUBQUEUE_DEFAULT_DESTINATION="b, a")
    one = read(f'default_destination = ["b"]\n{tables}')

    assert in_file.defaults == in_variable.defaults == ("b", "a")
    assert in_file.destination().name == "b"
    assert (one.default_destination, one.defaults) == ("b", ("b",))


def test_several_destinations_without_hub_need_a_default() -> None:
    assert problems_of("[destinations.a]\n[destinations.b]") == (
        "default_destination must name one of several destinations",
    )


def test_a_variable_adds_a_destination_only_by_its_type() -> None:
    config = read(
        HUBQUEUE_DESTINATIONS__LAB__TYPE="hub", HUBQUEUE_DESTINATIONS__LAB__URL="https://l.example.org"
    )
    (misspelt,) = problems_of(HUBQUEUE_DESTINATIONS__HBU__URL="https://l.example.org")

    assert config.destination("lab").url == "https://l.example.org"
    assert misspelt.endswith("did you mean 'HUBQUEUE_DESTINATIONS__HUB__URL'?")


def test_an_unknown_destination_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigError, match="unknown destination 'hbu'; did you mean 'hub'") as caught:
        read().destination("hbu")

    assert caught.value.hint == "the configuration has: hub, platform"


def test_each_kind_has_its_pace() -> None:
    limits = RateLimits()

    paces = {kind: limits.pace(kind) for kind in Kind}

    assert paces.pop(Kind.METRICS) == paces.pop(Kind.EVENT) == limits.metrics
    assert paces.pop(Kind.CKPT) == limits.ckpt
    assert paces.pop(Kind.HEARTBEAT) == limits.heartbeat
    assert set(paces.values()) == {timedelta(0)}


# --- what is declared


def test_every_field_of_the_settings_is_declared() -> None:
    for holder in (*(table.holder for table in tables_of(Config).values()), DestinationSettings):
        undeclared = {field.name for field in dataclasses.fields(holder)}
        undeclared -= settings_of(holder).keys() | tables_of(holder).keys()

        assert undeclared <= {"name", "url_named", "home"}


def test_a_destination_of_type_platform_has_that_services_defaults() -> None:
    config = read(
        'default_destination = "lab"\n[destinations.lab]\ntype = "platform"\nuploads_per_minute = 3'
    )

    lab = config.destinations["lab"]
    assert (lab.url, lab.budget.requests, lab.budget.uploads) == ("https://platform.ultralytics.com", 100, 3)
    assert lab.upload_hosts == ("storage.googleapis.com",)
    assert config.implied == frozenset()


def test_platforms_own_variable_names_its_address() -> None:
    config = read(ULTRALYTICS_PLATFORM_URL="http://127.0.0.1:8787/")

    assert (
        config.destinations["platform"].url
        == config.destinations["platform"].web_url
        == "http://127.0.0.1:8787"
    )
    assert config.destinations["hub"].url == "https://api.ultralytics.com"
