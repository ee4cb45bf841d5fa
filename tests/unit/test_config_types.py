"""Each type of destination has its own settings, also one of another package."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import bucket
import pytest

from hubqueue.config.reader import Config, parse
from hubqueue.config.reference.example import example
from hubqueue.config.registry import BUILT_IN, absent, usable
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import ConfigError

LAB = "[destinations.lab]\ntype = 'bucket'\n"


def read(text: str = "", **environ: str) -> Config:
    return parse(text, environ, source="/etc/hubqueue.toml")


def error_of(text: str = "", **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value


def problems_of(text: str = "", **environ: str) -> tuple[str, ...]:
    return error_of(text, **environ).problems


@pytest.fixture
def _bucket(tmp_path: Path) -> Iterator[None]:
    with bucket.installed(tmp_path):
        yield


def own(settings: DestinationSettings) -> tuple[object, object, int]:
    return (
        getattr(settings, "region", None),
        getattr(settings, "part_bytes", None),
        settings.uploads_per_minute,
    )


@pytest.mark.usefixtures("_bucket")
def test_a_type_has_its_own_settings_and_defaults() -> None:
    lab = read(LAB).destination("lab")

    assert own(lab) == ("eu-central-1", 8_388_608, 7)
    assert lab.connect_timeout == timedelta(seconds=10)


@pytest.mark.usefixtures("_bucket")
def test_the_settings_of_a_type_are_read_from_file_and_variables() -> None:
    in_file = read(LAB + "region = 'us-east-1'\npart_bytes = '16 MiB'").destination("lab")
    in_variable = read(
        LAB + "region = 'us-east-1'",
        HUBQUEUE_DESTINATIONS__LAB__REGION="ap-south-1",
        HUBQUEUE_DESTINATIONS__LAB__PART_BYTES="6 MB",
    ).destination("lab")

    assert own(in_file) == ("us-east-1", 16 * 1024 * 1024, 7)
    assert own(in_variable) == ("ap-south-1", 6_000_000, 7)


@pytest.mark.usefixtures("_bucket")
def test_the_type_is_known_before_the_keys_are_judged() -> None:
    after = read("[destinations.lab]\nregion = 'us-east-1'\ntype = 'bucket'")
    by_variable = read("destinations.lab.region = 'us-east-1'", HUBQUEUE_DESTINATIONS__LAB__TYPE="bucket")
    by_name = read("destinations.bucket.region = 'us-east-1'")
    alone = read(HUBQUEUE_DESTINATIONS__LAB__TYPE="bucket", HUBQUEUE_DESTINATIONS__LAB__REGION="us-east-1")
    over_the_file = read(
        "[destinations.lab]\ntype = 'hub'\nregion = 'us-east-1'", HUBQUEUE_DESTINATIONS__LAB__TYPE="bucket"
    )

    for config in (after, by_variable, alone, over_the_file):
        assert own(config.destination("lab"))[0] == "us-east-1"
    assert own(by_name.destination("bucket"))[0] == "us-east-1"


@pytest.mark.usefixtures("_bucket")
def test_a_key_of_another_type_is_refused_with_that_type() -> None:
    assert problems_of("destinations.hub.region = 'us-east-1'") == (
        "destinations.hub.region is a setting of type 's3' or 'bucket' only; this destination is of type 'hub'",
    )
    assert problems_of(HUBQUEUE_DESTINATIONS__HUB__REGION="us-east-1") == (
        "HUBQUEUE_DESTINATIONS__HUB__REGION is a setting of type 's3' or 'bucket' only; this destination is of type 'hub'",
    )
    assert problems_of(LAB + "region = 'us-east-1'", HUBQUEUE_DESTINATIONS__LAB__TYPE="platform") == (
        "destinations.lab.region is a setting of type 's3' or 'bucket' only; this destination is of type 'platform'",
    )


@pytest.mark.usefixtures("_bucket")
def test_an_unknown_type_is_the_only_problem_of_a_destination() -> None:
    assert problems_of("[destinations.lab]\ntype = 'buckte'\nregion = 'us-east-1'\nulr = 'x'") == (
        f"destinations.lab.type must be {' or '.join(map(repr, (*BUILT_IN, 'bucket')))}; did you mean 'bucket'?",
        "unknown key destinations.lab.ulr; did you mean 'url'?",
    )


@pytest.mark.usefixtures("_bucket")
def test_the_form_of_another_packages_setting_is_checked() -> None:
    assert problems_of(
        LAB + "region = 3\npart_bytes = '1 MB'", HUBQUEUE_DESTINATIONS__LAB__PART_BYTES="x"
    ) == (
        "destinations.lab.region must be a string, not a whole number",
        "destinations.lab.part_bytes must be 5000000 or more bytes",
        'HUBQUEUE_DESTINATIONS__LAB__PART_BYTES must be a whole number of bytes or a text such as "20 GB"',
    )
    assert problems_of(LAB + "regoin = 'x'") == (
        "unknown key destinations.lab.regoin; did you mean 'region'?",
    )


@pytest.mark.usefixtures("_bucket")
def test_a_limit_for_all_has_precedence_over_the_default_of_a_type() -> None:
    untouched = read(LAB).destination("lab").rate_limits
    for_all = read("rate_limits = {heartbeat = 9, metrics = 8}\n" + LAB).destination("lab").rate_limits
    own = (
        read("rate_limits.heartbeat = 9\n" + LAB + "rate_limits.heartbeat = 7").destination("lab").rate_limits
    )

    assert (untouched.heartbeat, untouched.metrics) == (timedelta(0), timedelta(seconds=3))
    assert (for_all.heartbeat, for_all.metrics) == (timedelta(seconds=9), timedelta(seconds=8))
    assert own.heartbeat == timedelta(seconds=7)


@pytest.mark.usefixtures("_bucket")
def test_the_example_shows_the_settings_of_another_package_too() -> None:
    text = example((*BUILT_IN, "bucket"))

    assert '\nregion = "eu-central-1"          # the region\n' in text
    assert own(read(text).destination("bucket")) == ("eu-central-1", 8_388_608, 7)


def test_the_settings_of_a_type_that_cannot_be_loaded_are_not_checked(
    tmp_path: Path,
) -> None:
    text = LAB + "region = 'us-east-1'\nrate_limits.metrics = 7"
    with bucket.installed(tmp_path, code="raise RuntimeError('no such library')"):
        found = read(text).destination("lab")
        beside_it = problems_of("retry.base = -1\n" + text + "\n[destinations.hub]\nulr = 'x'")
        unused = read()
        missing = absent("bucket")
        loadable = usable()

    assert (found.type, found.rate_limits.metrics) == ("bucket", timedelta(seconds=7))
    assert beside_it == (
        "retry.base must be 0 or more seconds",
        "unknown key destinations.hub.ulr; did you mean 'url'?",
    )
    assert missing is not None and missing.problem == (
        "destinations of type 'bucket' cannot be loaded from hubqueue-bucket: RuntimeError: no such library"
    )
    assert missing.hint.startswith("repair or reinstall hubqueue-bucket")
    assert unused == Config()
    assert loadable == tuple(BUILT_IN)
