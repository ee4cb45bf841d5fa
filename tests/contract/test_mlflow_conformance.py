"""The mlflow destination passes the conformance tests, over the fake server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_stage import Mlflow

from hubqueue.destinations.mlflow.sandbox import FakeMlflow
from hubqueue.testing.conformance import Conformance


@pytest.mark.slow
class TestMlflow(Conformance):
    @pytest.fixture
    def service(self) -> Iterator[Mlflow]:
        with Mlflow(FakeMlflow()) as running:
            yield running


@pytest.mark.slow
class TestRefusedRepeats(Conformance):
    """A server that refuses points that it has already."""

    @pytest.fixture
    def service(self) -> Iterator[Mlflow]:
        with Mlflow(FakeMlflow(refuses_repeats=True)) as running:
            yield running
