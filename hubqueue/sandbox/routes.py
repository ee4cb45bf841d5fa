"""What the services of the sandbox share: a table of routes, the keys, and receipts for repeated requests."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from hubqueue.sandbox.answers import Answer, Dialect, Refused
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.model import Fact
from hubqueue.sandbox.request import Body, Request


@dataclass(slots=True)
class Prepared:
    """A request that was received whole and understood. Exactly one of `commit` and `discard` is called."""

    commit: Callable[[], tuple[Answer, bool]]
    discard: Callable[[], None] = lambda: None
    epochs: tuple[int, ...] = ()


class Label(NamedTuple):
    """What only the body of a request says: its kind, and for an event of a training which, and of which model."""

    kind: str
    event: str | None = None
    model_id: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request belongs. `take` is None for a path that is not served (404, or 405 for its method).

    `label` is for a path on which the body tells the kind: it looks at the body, which can be read as before.
    """

    service: Service
    dialect: Dialect
    kind: str
    model_id: str | None = None
    take: Callable[[Request, str], Prepared] | None = None
    label: Callable[[Body], Label] | None = None
    needs_key: bool = True
    status: int = 404


@dataclass(frozen=True, slots=True)
class Entrance:
    """One row of a service's table: a method, a path whose first group is the model's id, and what takes it."""

    method: str
    path: re.Pattern[str]
    kind: str
    take: Callable[[Request, str], Prepared]
    needs_key: bool = True
    dialect: Dialect | None = None
    label: Callable[[Body], Label] | None = None


class Service:
    """One of the services. `keys` are those it accepts; none means any that is not empty."""

    dialect: Dialect

    def __init__(
        self, archive: Archive, keys: Iterable[str], table: Iterable[Entrance], *, honour_idempotency: bool
    ) -> None:
        self._archive = archive
        self._keys = tuple(key.encode() for key in keys)
        self._table = tuple(table)
        self._honour_idempotency = honour_idempotency

    def route(self, method: str, path: str) -> Route:
        """Find the route of a request, whoever sends it."""
        known = False
        for entrance in self._table:
            if not (match := entrance.path.fullmatch(path)):
                continue
            known = True
            if method == entrance.method:
                return Route(
                    service=self,
                    dialect=entrance.dialect or self.dialect,
                    kind=entrance.kind,
                    model_id=match.group(1) if entrance.path.groups else None,
                    take=entrance.take,
                    label=entrance.label,
                    needs_key=entrance.needs_key,
                )
        return Route(self, self.dialect, "other", status=405 if known else 404)

    def receive(self, route: Route, request: Request) -> Prepared:
        """Check and read a whole request, without keeping it. Raises `Refused`, or `RequestCut`."""
        if route.take is None:
            raise Refused(route.status, f"{request.method} is not served here")
        if route.needs_key and not self._accepts(self.key_of(request)):
            raise Refused(401, "the API key is not accepted")
        self.admit(route, request)
        return route.take(request, route.model_id or "")

    def key_of(self, request: Request) -> str:
        """The credential that this service looks at."""
        raise NotImplementedError

    def admit(self, route: Route, request: Request) -> None:
        """What is checked between the key and the body. Raises `Refused`."""
        raise NotImplementedError

    def _accepts(self, key: str) -> bool:
        given = key.encode("utf-8", "replace")
        if not self._keys:
            return bool(given)
        return any(hmac.compare_digest(given, each) for each in self._keys)

    def _keep(self, request: Request, make: Callable[[], tuple[Fact, Answer]]) -> tuple[Answer, bool]:
        return self._archive.keep(request.receipt if self._honour_idempotency else None, make)


def answering(answer: Answer) -> Prepared:
    """A request that asks and changes nothing."""
    return Prepared(lambda: (answer, False))


def now_text() -> str:
    """The moment, as facts write it."""
    return datetime.now(UTC).isoformat()
