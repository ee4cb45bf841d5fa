"""Reads the runs of an experiment and the checkpoints in their artifacts, for `pull` and `verify`. Changes nothing.

MLflow states sizes, but no hashes: the SHA-256 of a file is that of its manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import (
    Aborted,
    Delivered,
    DestinationUnavailable,
    Key,
    NotThere,
    Outcome,
    StoredCheckpoint,
    StoredFile,
    StoredRun,
    quiet,
)
from hubqueue.destinations.layout.reader import LayoutReader
from hubqueue.destinations.mlflow.artifacts import PROXY_OFF, ArtifactsOfRuns
from hubqueue.destinations.mlflow.drafts import RUN_ID
from hubqueue.destinations.mlflow.runs import STATES, Found, find_experiment
from hubqueue.destinations.mlflow.server import LARGE, Server
from hubqueue.destinations.mlflow.settings import MlflowSettings
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.domain.errors import TRY_AGAIN
from hubqueue.domain.redact import clean

_PAGE, _MOST_PAGES = 100, 10_000


class MlflowReader:
    """Reads one experiment of one server. Used by one thread."""

    def __init__(self, settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> None:
        assert isinstance(settings, MlflowSettings)
        self._name, self._server, self._experiment = (
            settings.name,
            Server(settings, keys),
            settings.experiment,
        )
        self._roots: dict[str, str] = {}
        self._layout = LayoutReader(ArtifactsOfRuns(self._server, self._roots.__getitem__))

    def runs(self) -> Iterator[StoredRun]:
        """All runs, the newest last."""
        for each in self._found():
            state = STATES.get(each.status)
            yield StoredRun(each.name or each.id, each.run_id, each.model, str(state or each.status.lower()))

    def checkpoints(self, run: str) -> tuple[StoredCheckpoint, ...]:
        """The checkpoints of the newest run with this name, or with this id of ours or of MLflow."""
        known = [each for each in self._found() if run in (each.name, each.run_id, each.id)]
        if not known:
            raise NotThere(f"there is no run {clean(run, limit=100)!r}")
        found = known[-1]
        if not found.root:
            what = f"the server of {self._name} does not store the artifacts of this run"
            raise DestinationUnavailable(what, hint=PROXY_OFF)
        self._roots[found.id] = found.root
        return self._layout.whole(found.id)

    def blocks(self, checkpoint: StoredCheckpoint, file: StoredFile, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset, in blocks of at most 1 MiB."""
        return self._layout.blocks(checkpoint, file, start=start)

    def hashed(self, checkpoint: StoredCheckpoint, file: StoredFile) -> StoredFile | None:
        """The size of a file now, without a hash; None if it is gone."""
        return self._layout.hashed(checkpoint, file)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._layout.close()

    def _found(self) -> Iterator[Found]:
        """All of our runs, the oldest first."""
        experiment = find_experiment(self._server, self._experiment, quiet())
        if experiment is None:
            return
        if not isinstance(experiment, str):
            raise self._unavailable(experiment)
        query: dict[str, object] = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{RUN_ID}` LIKE '%'",
            "order_by": ["attributes.start_time ASC"],
            "max_results": _PAGE,
        }
        for _ in range(_MOST_PAGES):
            response = self._server.post("runs/search", query, quiet(), most=LARGE)
            if not isinstance(response, ApiResponse):
                raise self._unavailable(response)
            for each in (response.json or {}).get("runs", []):
                found = Found.of(each)
                if found is not None:
                    yield found
            following = (response.json or {}).get("next_page_token")
            if not following or not isinstance(following, str):
                return
            query["page_token"] = following

    def _unavailable(self, outcome: Outcome) -> DestinationUnavailable:
        reason = "" if isinstance(outcome, Delivered | Aborted) else outcome.reason
        return DestinationUnavailable(f"{self._name}: {reason}", hint=TRY_AGAIN)
