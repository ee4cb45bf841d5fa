"""The transport to an MLflow server: a run with its params, its metrics, its checkpoints as artifacts, and its end."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import (
    Aborted,
    Attempt,
    Batch,
    Blocked,
    Delivered,
    Key,
    Kind,
    Outcome,
    Rejected,
    Scope,
    SeekableBlocks,
    Snapshot,
    quiet,
)
from hubqueue.destinations.layout.checkpoints import Checkpoints
from hubqueue.destinations.layout.retention import KEEP_ALL
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.destinations.mlflow.artifacts import PROXY_OFF, Artifacts
from hubqueue.destinations.mlflow.points import Metrics
from hubqueue.destinations.mlflow.runs import ROOT, Found, find_experiment, read_run, send_end, send_start
from hubqueue.destinations.mlflow.server import Server
from hubqueue.destinations.mlflow.settings import MlflowSettings
from hubqueue.destinations.wire.kept import is_kept_id


class MlflowTransport:
    """Sends to one MLflow server. Safe to use from several threads."""

    def __init__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[Key, ...]],
        open_body: Callable[[Snapshot], SeekableBlocks],
    ) -> None:
        assert isinstance(settings, MlflowSettings)
        self._server, self._experiment = Server(settings, keys), settings.experiment
        self._metrics = Metrics(self._server)
        self._checkpoints = Checkpoints(open_body, KEEP_ALL)

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: the start of a training, metrics, a checkpoint, or its end."""
        if batch.kind is Kind.REGISTRATION:
            return send_start(self._server, self._experiment, batch, attempt)
        if not is_kept_id(batch.run.remote_id, ()):
            return Blocked("invalid model id of the run", Scope.RUN)
        match batch.kind:
            case Kind.METRICS:
                return self._metrics.send(batch, attempt)
            case Kind.CKPT:
                return self._send_checkpoint(batch, attempt)
            case Kind.COMPLETION:
                swept = self._sweep(batch, attempt)
                return swept if swept is not None else send_end(self._server, batch, attempt)
            case other:
                raise ValueError(f"an MLflow server accepts no {other}")

    def check(self) -> Outcome:
        """Ask for the experiment: that needs the key. A missing one is made by the first run."""
        found = find_experiment(self._server, self._experiment, quiet())
        return Delivered() if found is None or isinstance(found, str) else found

    def close(self) -> None:
        self._server.close()

    def _send_checkpoint(self, batch: Batch, attempt: Attempt) -> Outcome:
        root = self._root(batch, attempt)
        if not isinstance(root, str):
            return root
        if not root:
            what = f"the server of {self._server.name} does not store the artifacts of this run"
            return Rejected(f"{what}: {PROXY_OFF}, for the runs of a new experiment")
        try:
            objects = Artifacts(self._server, lambda _run: root, attempt)
            return self._checkpoints.send(objects, batch, attempt)
        except StoreFailed as failed:
            return failed.outcome

    def _sweep(self, batch: Batch, attempt: Attempt) -> Outcome | None:
        """Delete what is left of cancelled checkpoints, if this server lets us. None when the run can end."""
        root = self._root(batch, attempt)
        if not isinstance(root, str):
            return root
        if not root:
            return None
        try:
            objects = Artifacts(self._server, lambda _run: root, attempt)
            self._checkpoints.sweep(objects, batch.run.remote_id or "")
        except StoreFailed as failed:
            # A server that stores no artifacts now has nothing to delete: the end does not wait for it.
            return failed.outcome if isinstance(failed.outcome, Aborted) else None
        return None

    def _root(self, batch: Batch, attempt: Attempt) -> str | Outcome:
        """The path of the run's artifacts at the proxy; empty if they are not stored there."""
        known = batch.run.remembered.get(ROOT)
        if isinstance(known, str):
            return known
        found = read_run(self._server, batch.run.remote_id or "", attempt)
        return (found.root or "") if isinstance(found, Found) else found
