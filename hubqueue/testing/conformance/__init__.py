"""The conformance tests for destinations: a class of pytest tests that the tests of a plugin inherit.

    from hubqueue.testing.conformance import Conformance

    class TestCollector(Conformance):
        @pytest.fixture
        def service(self):
            with FakeCollector() as running:
                yield running

The fixture is a running fake service (`Service`); `HttpService` makes one over HTTP. Each test sends with the real transport of the
destination, from a real outbox. A test for something that the destination or the service declares to lack is skipped, with its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

try:
    import pytest
except ImportError as error:
    raise ImportError("the conformance tests need pytest: pip install 'hubqueue[testing]'") from error

_HERE = "hubqueue.testing.conformance."
# Before the first import of them: a failed assertion then shows its values.
pytest.register_assert_rewrite(
    *(_HERE + name for name in ("deliveries", "faults", "limits", "reading", "repeats", "secrecy", "stage"))
)

from hubqueue.sandbox.response import Refused  # noqa: E402
from hubqueue.testing.conformance.deliveries import Deliveries  # noqa: E402
from hubqueue.testing.conformance.faults import Faults  # noqa: E402
from hubqueue.testing.conformance.http_service import HttpRequest, HttpService  # noqa: E402
from hubqueue.testing.conformance.limits import Limits  # noqa: E402
from hubqueue.testing.conformance.reading import Reading  # noqa: E402
from hubqueue.testing.conformance.repeats import Repeats  # noqa: E402
from hubqueue.testing.conformance.sandboxed import SandboxService  # noqa: E402
from hubqueue.testing.conformance.secrecy import Secrecy  # noqa: E402
from hubqueue.testing.conformance.service import BAD_EPOCH, BAD_MARK, WAIT, Fault, Received, Service  # noqa: E402
from hubqueue.testing.conformance.stage import Stage, staged  # noqa: E402

__all__ = [
    "BAD_EPOCH",
    "BAD_MARK",
    "WAIT",
    "Conformance",
    "Fault",
    "HttpRequest",
    "HttpService",
    "Received",
    "Refused",
    "SandboxService",
    "Service",
    "Stage",
    "staged",
]


class Conformance(Deliveries, Faults, Repeats, Limits, Secrecy, Reading):
    """The tests. A subclass whose name begins with `Test` defines the fixture `service`.

    `twins` is how many empty runs the service may have after several lost responses to the start of a run: 0, unless
    the protocol can neither repeat a start nor find a run again.
    """

    twins = 0

    @pytest.fixture
    def service(self) -> Service:
        """The fake service, new for each test."""
        raise NotImplementedError("define the fixture `service`: a running fake service")

    @pytest.fixture
    def stage(self, service: Service, tmp_path: Path) -> Iterator[Stage]:
        """A home with one destination that sends to the service."""
        with staged(service, tmp_path / "conformance", twins=self.twins) as made:
            yield made
