"""What a person sees of an error that ends their script."""

import traceback

from hubqueue.domain.errors import ConfigError


def test_a_traceback_ends_with_the_hint() -> None:
    error = ConfigError(("unknown key rate_limits.metric",), hint="correct config.toml")

    shown = "".join(traceback.format_exception(error)).splitlines()

    assert shown[-1] == "hint: correct config.toml"
    assert str(error) == "unknown key rate_limits.metric"
