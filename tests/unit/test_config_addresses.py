"""Which addresses a configuration accepts, and the problems of the others."""

from __future__ import annotations

import pytest

from hubqueue.config.reader import Config, parse
from hubqueue.domain.errors import ConfigError

SECRET = "hunter2hunter2"


def read(text: str = "", **environ: str) -> Config:
    return parse(text, environ, source="/etc/hubqueue.toml")


def problems_of(text: str = "", **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value.problems


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://example.org", "must be an http:// or https:// URL with a host"),
        ("example.org", "must be an http:// or https:// URL with a host"),
        ("https://", "must be an http:// or https:// URL with a host"),
        ("https://:8443", "must be an http:// or https:// URL with a host"),
        ("https://example.org:99999", "must be a URL like https://host or https://host:8443"),
        ("https://[::1", "must be a URL like https://host or https://host:8443"),
        (f"https://u:{SECRET}@example.org", "must not have a user or password in it"),
        (f"https://example.org/?api_key={SECRET}", "must not have a query or fragment"),
        ("https://example.org/#", "must not have a query or fragment"),
        (
            "https://example.org\\\\@evil.org",
            "must be a URL without blanks, backslashes or letters outside ASCII",
        ),
        ("https://exa mple.org", "must be a URL without blanks, backslashes or letters outside ASCII"),
        ("https://exämple.org", "must be a URL without blanks, backslashes or letters outside ASCII"),
    ],
)
def test_an_address_is_a_plain_root(url: str, problem: str) -> None:
    assert problems_of(f'destinations.hub.url = "{url}"') == (f"destinations.hub.url {problem}",)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "http://127.0.0.1:8000",
        "http://127.9.9.9",
        "http://[::1]:8000",
        "http://LOCALHOST",
    ],
)
def test_plain_http_is_fine_on_this_machine(url: str) -> None:
    assert read(f'destinations.hub.url = "{url}"').destination().url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "http://10.0.0.1",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://[::2]",
    ],
)
def test_plain_http_to_another_machine_needs_insecure(url: str) -> None:
    text = f'destinations.hub.url = "{url}"\n'

    (problem,) = problems_of(text)

    assert problem.startswith("destinations.hub.url is plain http to another machine")
    assert read(text + "destinations.hub.insecure = true").destination().url == url


def test_plain_http_in_the_hubs_own_variable_is_refused_by_its_name() -> None:
    (problem,) = problems_of(ULTRALYTICS_HUB_API="http://example.org")

    assert problem.startswith("ULTRALYTICS_HUB_API is plain http to another machine")


def test_a_proxys_password_may_only_come_from_the_environment() -> None:
    proxy = f"http://user:{SECRET}@proxy:3128"

    from_environment = read(HUBQUEUE_DESTINATIONS__HUB__PROXY=proxy)

    assert from_environment.destination("hub").proxy == proxy
    assert SECRET not in repr(from_environment)
    assert problems_of(f"destinations.hub.proxy = '{proxy}'") == (
        "destinations.hub.proxy must not have a user or password in it",
    )


@pytest.mark.parametrize("type", ["hub", "platform"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:8765", "http://localhost:8765", "http://[::1]:8765"])
@pytest.mark.parametrize("proxy", ["http://proxy:3128", "https://10.0.0.1"])
def test_plain_http_does_not_leave_the_machine_by_a_proxy(type: str, url: str, proxy: str) -> None:
    text = f"destinations.{type}.url = '{url}'\ndestinations.{type}.proxy = '{proxy}'\n"

    (problem,) = problems_of(text)

    assert problem.startswith(f"destinations.{type}.proxy leads plain http through another machine")
    assert read(text + f"destinations.{type}.insecure = true").destination(type).proxy == proxy
    (by_variable,) = problems_of(
        f"destinations.{type}.url = '{url}'", **{f"HUBQUEUE_DESTINATIONS__{type.upper()}__PROXY": proxy}
    )
    assert by_variable.startswith(f"HUBQUEUE_DESTINATIONS__{type.upper()}__PROXY leads plain http")


@pytest.mark.parametrize(
    ("url", "proxy"),
    [("https://hub.example.org", "http://proxy:3128"), ("http://127.0.0.1:1", "http://localhost:3128")],
)
def test_a_proxy_that_reads_nothing_is_fine(url: str, proxy: str) -> None:
    found = read(f"destinations.hub.url = '{url}'\ndestinations.hub.proxy = '{proxy}'").destination("hub")

    assert (found.url, found.proxy) == (url, proxy)
