"""An endpoint: what a request needs of the settings of a destination."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.wire.endpoint import Endpoint

SETTINGS = DestinationSettings(
    "lab",
    "hub",
    url="https://lab.example.org:8443/api/",
    proxy="http://user:password-of-the-proxy@proxy.example.org:3128",
    ca_bundle=Path("/etc/lab.pem"),
    connect_timeout=timedelta(seconds=1),
    answer_timeout=timedelta(seconds=2),
    stall_window=timedelta(seconds=3),
    stall_rate=4,
)


def test_an_endpoint_has_the_deadlines_and_the_way_of_its_destination() -> None:
    endpoint = Endpoint.of(SETTINGS)

    assert endpoint.root == "https://lab.example.org:8443/api"
    assert endpoint.host == "lab.example.org"
    shared = {each.name for each in fields(endpoint)} - {"root"}
    assert {name: getattr(endpoint, name) for name in shared} == {
        name: getattr(SETTINGS, name) for name in shared
    }


def test_another_address_is_reached_in_the_same_way() -> None:
    storage = Endpoint.of(SETTINGS).at("https://storage.example.org")

    assert storage.host == "storage.example.org"
    assert storage.at("https://lab.example.org:8443/api") == Endpoint.of(SETTINGS)


def test_the_password_of_a_proxy_is_not_shown() -> None:
    assert "password-of-the-proxy" not in repr(Endpoint.of(SETTINGS))
