"""The calls to a bucket: one request each, to its own address, within the deadlines, and with nothing in a log."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import create_loader
from s3_proxy import S3Proxy

from hubqueue.config.credentials import Credentials
from hubqueue.config.declaration import Key
from hubqueue.destinations.base import Aborted, Attempt, Blocked, Outcome, RetryLater, Scope, quiet
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.destinations.s3.store import Bucket
from hubqueue.domain.outcome import ADVICE

KEY = Key("AKIA0000000000000001", {"secret_access_key": "secret/of+the-tests-0123456789"})
LOADER = functools.cache(create_loader)
TEMPORARY = {
    "AWS_ACCESS_KEY_ID": "ASIA0000000000000001",
    "AWS_SECRET_ACCESS_KEY": "temporary/secret+0123456789abcdefghijkl",
    "AWS_SESSION_TOKEN": "".join(f"token{number:04d}" for number in range(120)),
}


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session of botocore would read its large description of the service again."""
    monkeypatch.setattr("botocore.session.create_loader", LOADER)


@pytest.fixture
def server() -> Iterator[S3Proxy]:
    """A server that has no bucket behind it: a test says how it responds."""
    with S3Proxy("http://127.0.0.1:9") as made:
        yield made


def settings_of(server: S3Proxy, **more: Any) -> S3Settings:
    usual: dict[str, Any] = {"bucket": "lab", "endpoint_url": server.url}
    return S3Settings("store", **{**usual, **more})


def created(settings: S3Settings, attempt: Attempt | None = None, key: Key | None = KEY) -> Outcome | bool:
    """Whether an object was created, or the outcome of the failure."""
    store = Bucket(settings, lambda: () if key is None else (key,))
    try:
        with store.sending({}, attempt or quiet()) as objects:
            return objects.create("run/run.json", b"{}")
    except StoreFailed as failed:
        return failed.outcome
    finally:
        store.close()


def stored(server: S3Proxy, times: int = 1) -> None:
    """Let the next objects be stored."""
    server.fault("PutObject", times=times, before=(200, ""), body=b"", headers={"ETag": '"1"'})


def test_a_signed_request_carries_its_hash_and_a_condition(server: S3Proxy) -> None:
    stored(server)

    assert created(settings_of(server)) is True

    (seen,) = server.seen
    assert (seen.what, seen.key, seen.size) == ("PutObject", "hubqueue/run/run.json", 2)
    assert seen.headers["If-None-Match"] == "*"
    assert seen.headers["x-amz-checksum-sha256"] == "RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o="
    signed = seen.headers["Authorization"]
    assert all(each in signed for each in ("host", "if-none-match", "x-amz-checksum-sha256", KEY))
    assert seen.headers["User-Agent"].startswith("hubqueue/")


def test_an_object_that_is_not_there_ends_no_connection(server: S3Proxy) -> None:
    server.fault("GetObject", times=3, before=(404, "NoSuchKey"))
    server.fault("PutObject", before=(412, "PreconditionFailed"))
    stored(server)

    with Bucket(settings_of(server), lambda: (KEY,)).sending({}, quiet()) as objects:
        assert [objects.read(name) for name in ("a", "b", "c")] == [None] * 3
        assert [objects.create("a", b"1"), objects.create("a", b"1")] == [False, True]

    assert server.connections == 1


@pytest.mark.parametrize(
    ("status", "code", "headers"),
    [
        (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1", "Location": "http://127.0.0.1:9/"}),
        (400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": "eu-west-1"}),
        pytest.param(307, "TemporaryRedirect", {"Location": "http://127.0.0.1:9/"}, marks=pytest.mark.slow),
        pytest.param(500, "InternalError", {}, marks=pytest.mark.slow),
        (503, "SlowDown", {}),
    ],
)
def test_nothing_is_repeated_or_redirected(
    server: S3Proxy, status: int, code: str, headers: dict[str, str]
) -> None:
    server.fault("PutObject", times=9, before=(status, code), headers=headers)

    found = created(settings_of(server))

    assert isinstance(
        found, Blocked if code in ("PermanentRedirect", "AuthorizationHeaderMalformed") else RetryLater
    )
    assert [each.what for each in server.seen] == ["PutObject"]


def test_a_head_that_is_refused_is_explained(server: S3Proxy) -> None:
    server.fault("HeadObject", before=(403, ""), body=b"", headers={"x-amz-request-id": "1"})
    server.fault("ListObjectsV2", before=(400, "ExpiredToken"))
    store = Bucket(settings_of(server), lambda: (KEY,))

    with store.reading() as objects, pytest.raises(StoreFailed) as failed:
        objects.stat("run/run.json")

    assert isinstance(failed.value.outcome, Blocked) and "the key has expired" in failed.value.outcome.reason


def test_the_addresses_of_other_programs_are_not_used(
    server: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    stored(server)

    assert created(settings_of(server)) is True
    # Without an endpoint_url it is AWS, whatever that variable says. There is no proxy at this address.
    found = created(S3Settings("store", bucket="lab", proxy="http://127.0.0.1:9"))
    assert isinstance(found, RetryLater) and "lab.s3.amazonaws.com" in found.reason


def test_the_stop_and_the_deadlines_of_the_wire_hold(server: S3Proxy) -> None:
    held = server.fault("PutObject", times=2, hold=True)
    stop = threading.Event()
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(created(settings_of(server), replace(quiet(), stop=stop)))
    )
    thread.start()
    assert held.reached.wait(60)
    stop.set()
    thread.join(60)

    assert isinstance(found[0], Aborted)
    late = created(settings_of(server, answer_timeout=timedelta(seconds=0.3)))
    assert isinstance(late, RetryLater) and "no complete response within" in late.reason


def test_a_session_token_is_sent_and_never_logged(
    server: S3Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name, value in TEMPORARY.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(0)
    body = f"<Error><Code>ExpiredToken</Code><Message>{TEMPORARY['AWS_SESSION_TOKEN']}</Message></Error>"
    server.fault("PutObject", before=(400, ""), body=body.encode())
    settings = settings_of(server)
    (key,) = Credentials(tmp_path / "none.toml", TEMPORARY).keys(settings)

    found = created(settings, key=key)

    assert server.seen[0].headers["X-Amz-Security-Token"] == TEMPORARY["AWS_SESSION_TOKEN"]
    assert isinstance(found, Blocked) and "the AWS profile 'default'" in found.reason
    for secret in TEMPORARY.values():
        assert secret[:40] not in caplog.text + found.reason
    assert "token0007token0008" not in caplog.text + found.reason


def test_without_credentials_the_destination_is_held(server: S3Proxy, tmp_path: Path) -> None:
    settings = settings_of(server)
    (key,) = Credentials(tmp_path / "none.toml", {}).keys(settings)

    found = created(settings, key=key)

    assert isinstance(found, Blocked) and found.scope is Scope.DESTINATION
    assert found.reason.startswith("the key is missing") and "hubqueue login store" in found.reason
    assert server.seen == []


def test_renewed_credentials_of_a_file_are_read_again(
    server: S3Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write(number: int) -> None:
        file.write_text(
            f"[default]\naws_access_key_id = AKIA{number:016d}\naws_secret_access_key = {'s' * 40}\n"
        )

    write(1)
    settings = settings_of(server)
    (key,) = Credentials(tmp_path / "none.toml", {}).keys(settings)
    store = Bucket(settings, lambda: (key,))
    server.fault("PutObject", before=(403, "InvalidAccessKeyId"))
    stored(server)
    with store.sending({}, quiet()) as objects:
        with pytest.raises(StoreFailed):
            objects.create("run/run.json", b"{}")
        write(2)
        assert objects.create("run/run.json", b"{}")

    assert [f"AKIA{at + 1:016d}" in each.headers["Authorization"] for at, each in enumerate(server.seen)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (500, "InternalFailure")])
def test_a_role_that_cannot_be_assumed_is_a_reason_not_a_defect(
    server: S3Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, code: str
) -> None:
    (tmp_path / "config").write_text(
        "[profile lab]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\nregion = us-east-1\n"
        f"[profile base]\naws_access_key_id = AKIA0000000000000001\naws_secret_access_key = {'s' * 40}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server.fault("CompleteMultipartUpload", times=9, before=(status, code))  # any POST
    settings = settings_of(server)
    (key,) = Credentials(tmp_path / "none.toml", {"AWS_PROFILE": "lab"}).keys(settings)

    found = created(settings, key=key)

    assert isinstance(found, Blocked if status == 403 else RetryLater)
    assert ("the AWS profile 'lab'" in found.reason) == (status == 403)


def test_an_address_that_boto3_does_not_accept_is_a_hold() -> None:
    found = created(S3Settings("store", bucket="lab", endpoint_url="http://my_storage:9000"))

    assert isinstance(found, Blocked) and "boto3 refuses the settings" in found.reason


def test_without_boto3_the_reason_is_the_line_that_installs_it(
    server: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)

    found = created(settings_of(server))

    assert isinstance(found, Blocked) and found.scope is Scope.DESTINATION
    assert found.reason.endswith(f"{ADVICE}pip install 'hubqueue[s3]'")


def test_the_declaration_loads_no_library() -> None:
    code = """
import sys
import hubqueue.destinations.s3
print(sys.modules.keys() & {"boto3", "botocore", "urllib3", "requests"})
"""

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "set()\n"
