"""The two metrics queues of the original `HUBTrainingSession`, `{epoch: JSON text}`, as views of the outbox.

Writing saves at once; reading shows what waits. Deleting only hides an epoch in this view: it stays owed until the
hub has it, or until `hubqueue cancel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox.stats import Stats
from hubqueue.producer.run import Run
from hubqueue.producer.survival import logger

_LOG = logger()
_T = TypeVar("_T")
Log = Callable[[int, object], None]


class EpochTexts(MutableMapping[int, Any]):
    """The waiting metrics of a run: those never sent, or (`failed`) those that the hub has not accepted yet.

    `run` returns the run to read from, or None before there is one. `log` saves the metrics of an epoch.
    """

    def __init__(self, run: Callable[[], Run | None], log: Log, *, failed: bool) -> None:
        self._run, self._log, self._failed = run, log, failed
        self._cleared_to = 0  # only entries with a higher id are shown
        self._hidden: set[int] = set()

    def __getitem__(self, epoch: int) -> str:
        return self._read()[int(epoch)][1]

    def __setitem__(self, epoch: int, text: object) -> None:
        self._log(epoch, text)

    def __delitem__(self, epoch: int) -> None:
        self._hidden.add(self._read()[int(epoch)][0])

    def __iter__(self) -> Iterator[int]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __bool__(self) -> bool:
        # Called after every epoch: the lane alone shows that nothing has failed, without reading entries.
        if self._failed and not self._query(lambda stats, run_id: stats.has_failed(run_id, Kind.METRICS)):
            return False
        return len(self) > 0

    def __repr__(self) -> str:
        return repr(dict(self))

    def __eq__(self, other: object) -> bool:
        return dict(self) == (dict(other) if isinstance(other, Mapping) else other)

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> dict[int, str]:
        """What is shown now, as a plain dictionary."""
        return {epoch: text for epoch, (_, text) in self._read().items()}

    def update(self, *others: Any, **named: Any) -> None:
        """Save the metrics of several epochs. Those of the other view are in the outbox already, so they stay unchanged."""
        for other in others:
            if not isinstance(other, EpochTexts):
                super().update(other)

    def clear(self) -> None:
        """Hide everything that waits now."""
        self._cleared_to = self._query(lambda stats, _run_id: stats.newest_entry()) or self._cleared_to
        self._hidden.clear()

    def _read(self) -> dict[int, tuple[int, str]]:
        waiting = self._query(
            lambda stats, run_id: list(stats.texts(run_id, Kind.METRICS, failed=self._failed))
        )
        return {
            int(key): (entry, text)
            for entry, key, text in waiting or ()
            if entry > self._cleared_to and entry not in self._hidden
        }

    def _query(self, query: Callable[[Stats, str], _T]) -> _T | None:
        run = self._run()
        if run is None or run.outbox is None or run.id is None:
            return None
        try:
            return query(run.outbox.stats, run.id)
        except HubqueueError as error:
            _LOG.debug("the waiting metrics could not be read: %s", error)
            return None
