"""The seed's two queues of metrics, `{epoch: JSON text}`, as views over the outbox.

Writing saves at once; reading shows what waits. Taking away changes nothing that is owed: an epoch leaves the
outbox when the hub has it, or with `hubqueue cancel`. What was taken away is only not shown again by this view.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox.stats import Stats
from hubqueue.producer.run import Run

_LOG = logging.getLogger("hubqueue")
_T = TypeVar("_T")
Log = Callable[[int, object], None]


class EpochTexts(MutableMapping[int, Any]):
    """The metrics of a run that wait: those never sent, or (`failed`) those that a hub did not take yet.

    `run` gives the run to read from, None before there is one; `log` saves the metrics of an epoch.
    """

    def __init__(self, run: Callable[[], Run | None], log: Log, *, failed: bool) -> None:
        self._run, self._log, self._failed = run, log, failed
        self._seen = 0  # newer entries than this one are shown
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
        # Asked after every epoch: the lane alone tells that nothing has failed.
        if self._failed and not self._asked(lambda stats, run_id: stats.has_failed(run_id, Kind.METRICS)):
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
        """Save the metrics of several epochs. Those of the other view are in the outbox already and stay as they are."""
        for other in others:
            if not isinstance(other, EpochTexts):
                super().update(other)

    def clear(self) -> None:
        """Show none of what waits now any more."""
        self._seen = self._asked(lambda stats, _run_id: stats.newest_entry()) or self._seen
        self._hidden.clear()

    def _read(self) -> dict[int, tuple[int, str]]:
        waiting = self._asked(
            lambda stats, run_id: list(stats.texts(run_id, Kind.METRICS, failed=self._failed))
        )
        return {
            int(key): (entry, text)
            for entry, key, text in waiting or ()
            if entry > self._seen and entry not in self._hidden
        }

    def _asked(self, question: Callable[[Stats, str], _T]) -> _T | None:
        run = self._run()
        if run is None or run.outbox is None or run.id is None:
            return None
        try:
            return question(run.outbox.stats, run.id)
        except HubqueueError as error:
            _LOG.debug("the waiting metrics could not be read: %s", error)
            return None
