"""The common part of most services: a table of routes, and the check of the key before each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from hubqueue.sandbox.archive import Archive, Fact
from hubqueue.sandbox.request import Body, Request
from hubqueue.sandbox.response import Dialect, Refused, Response


@dataclass(slots=True)
class Prepared:
    """A request that was received whole and parsed. Exactly one of `commit` and `discard` is called.

    `commit` returns the response, and whether an earlier request with the same key already got it.
    """

    commit: Callable[[], tuple[Response, bool]]
    discard: Callable[[], None] = lambda: None
    epochs: tuple[int, ...] = ()


class Label(NamedTuple):
    """What only the body of a request shows: its kind, its event and its model."""

    kind: str
    event: str | None = None
    model_id: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The handler of a request. `take` is None for a path that is not served (404, or 405 for its method).

    `take` checks and reads a whole request without storing it; it raises `Refused`, or `RequestCut`. `label` is for a
    path whose kind is in the body: it previews the body, which can still be read afterwards.
    """

    dialect: Dialect
    kind: str = "other"
    model_id: str | None = None
    take: Callable[[Request], Prepared] | None = None
    label: Callable[[Body], Label] | None = None
    status: int = 404


@dataclass(frozen=True, slots=True)
class Entrance:
    """One row of a service's table: a method, a path whose first group is the model's id, and the handler."""

    method: str
    path: re.Pattern[str]
    kind: str
    take: Callable[[Request, str], Prepared]
    needs_key: bool = True
    dialect: Dialect | None = None
    label: Callable[[Body], Label] | None = None


class RoutedService:
    """A service with a table of routes. Subclasses define `key_of`, and `admit` if they check more than a key."""

    dialect: Dialect
    _archive: Archive
    _accepts: Callable[[str], bool]

    def __init__(self, table: Iterable[Entrance]) -> None:
        self._table = tuple(table)

    def attach(self, archive: Archive, accepts: Callable[[str], bool]) -> None:
        """Attach the service to one sandbox: its archive, and its check of an API key."""
        self._archive = archive
        self._accepts = accepts

    def route(self, method: str, path: str) -> Route:
        """Find the route of a request. The key is not checked yet."""
        known = False
        for entrance in self._table:
            if not (match := entrance.path.fullmatch(path)):
                continue
            known = True
            if method == entrance.method:
                model_id = match.group(1) if entrance.path.groups else None
                return Route(
                    dialect=entrance.dialect or self.dialect,
                    kind=entrance.kind,
                    model_id=model_id,
                    take=partial(self._take, entrance, model_id),
                    label=entrance.label,
                )
        return Route(self.dialect, status=405 if known else 404)

    def _take(self, entrance: Entrance, model_id: str | None, request: Request) -> Prepared:
        if entrance.needs_key:
            key = self.key_of(request)
            if not self._accepts(key):
                raise Refused(401, "the API key is not accepted")
            self.admit(entrance, request, key)
        self.look_up(model_id, request)
        return entrance.take(request, model_id or "")

    def key_of(self, request: Request) -> str:
        """The credential that this service checks, "" without one."""
        raise NotImplementedError

    def admit(self, entrance: Entrance, request: Request, key: str) -> None:
        """Check more before the body is read, such as a rate limit. Raises `Refused`."""

    def look_up(self, model_id: str | None, request: Request) -> None:
        """Check the id in the path before the body is read. Raises `Refused`."""

    def _keep(self, request: Request, make: Callable[[], tuple[Fact, Response]]) -> tuple[Response, bool]:
        return self._archive.keep(request.receipt, make)


def responding(response: Response) -> Prepared:
    """A request that changes nothing."""
    return Prepared(lambda: (response, False))


def now_text() -> str:
    """The current time, in the format of facts."""
    return datetime.now(UTC).isoformat()
