"""`HUBTrainingSession`: a drop-in replacement for the class of that name in ultralytics 8.2 to 8.3, on an outbox.

`callbacks/hub.py` of those versions runs with this class unmodified. What is written to `metrics_queue` or passed to
`upload_model` is on disk when the call returns, and reaches the hub even if this process dies. The session uses the
network once, before the training, and only to read a model that the hub already has. A training that starts from a
model file does not need the hub. `hub-sdk` is not used.

docs/seed-parity.md lists where it behaves differently, and why.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from hubqueue.config.home import Home
from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.hub import identifier
from hubqueue.domain.errors import ConfigError, InvalidModel, ModelUnavailable
from hubqueue.integrations.cadence import Cadence, Timers
from hubqueue.integrations.hub_session import model as hub_model
from hubqueue.integrations.hub_session import request_queue as requesting
from hubqueue.integrations.hub_session.account import Account
from hubqueue.integrations.hub_session.epoch_texts import EpochTexts
from hubqueue.integrations.hub_session.model import Model
from hubqueue.producer.called_with import destination_names
from hubqueue.producer.leftover import describe
from hubqueue.producer.metrics import metrics_mapping
from hubqueue.producer.progress import UploadBar
from hubqueue.producer.run import Run, start_run
from hubqueue.producer.senders import WorkerMode
from hubqueue.producer.startup.wanted import readable_settings
from hubqueue.producer.survival import logger, survive

_LOG = logger()
# The run id, for the processes of a training on several GPUs.
_RUN_OF_CHILDREN = "HUBQUEUE_RUN"


class HUBTrainingSession:
    """One training run at a HUB, and at further destinations if `destination` names several.

    `deadline` is how many seconds `upload_model(final=True)` waits for the hub; the other options are those of
    `start_run`. Attributes as in the original: `rate_limits` (seconds), `timers`, `filename`, `client`, `model`,
    `model_file`, `train_args`. Raises `InvalidModel`, `UnknownModel` and `ConfigError`.
    """

    def __init__(
        self,
        identifier: str,
        *,
        destination: str | Sequence[str] | None = None,
        home: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        worker: WorkerMode = "auto",
        deadline: float = 60.0,
    ) -> None:
        self._home = Home.locate(home)
        self._names = destination_names(destination)
        self._target, self._others, self._is_settled = _hub(self._home, config, self._names)
        self._options: dict[str, Any] = {"home": home, "config": config, "worker": worker}
        self._identifier, self._deadline = str(identifier), deadline
        self.rate_limits = {"metrics": 3, "ckpt": 900, "heartbeat": 300}
        self.model_file: str | None = None
        self.train_args: dict[str, Any] | None = None
        self.unread: ModelUnavailable | None = None
        key, model_id, self.filename = self._parse_identifier(self._identifier)
        self.client = Account(self._home, self._target, key)
        self.model = Model(self)
        self._run: Run | None = None
        self._alive, self._on_several_devices = True, False
        self._guard = threading.RLock()
        self._cadence = Cadence()
        self._background = requesting.Background()
        self._timers = Timers(self._cadence)
        self._waiting = EpochTexts(lambda: self._run, self._log, failed=False)
        self._failed = EpochTexts(lambda: self._run, self._log, failed=True)
        if _inherited_run():
            self._started()
        elif model_id:
            try:
                self.load_model(model_id)
            except ModelUnavailable as error:
                # Uploads need only the id. `create_session` raises the error, because it also needs the model's file.
                self.unread = error
                _LOG.warning("%s; what is logged is saved and sent later", error)
                self._started()

    @classmethod
    def create_session(cls, identifier: str, args: Any = None, **options: Any) -> Self | None:
        """Create a session. For a model file with `args`, a new model is registered.

        Returns None, and logs why, when the identifier names no model of a HUB. Raises `UnknownModel` and
        `ModelUnavailable` for a model of the hub that cannot be read, because the training cannot start without it.
        """
        try:
            session = cls(identifier, **options)
        except InvalidModel as error:
            if "://" in str(identifier):
                raise
            _LOG.warning("this training is not sent to a hub: %s", error)
            return None
        if session.unread is not None:
            raise session.unread
        if args and session.filename:
            session.create_model(args)
        return session

    def load_model(self, model_id: str) -> None:
        """Read a model from the hub, and start its run unless it is trained already.

        Raises `UnknownModel` (no such model, no data set yet) and `ModelUnavailable` (the hub cannot be read).
        """
        self.model.data = hub_model.read_model(self.client.keys, self._target, model_id)
        self.model.data.setdefault("id", model_id)
        if hub_model.is_trained(self.model.data):
            self.model_file = hub_model.model_file(self.model.data)
            _LOG.info("model %s is trained already", model_id)
            return
        self._set_train_args()
        self._started()
        _LOG.info("view the run at %s", self.model_url)

    def create_model(self, model_args: Any) -> None:
        """Start the run of a new model for the file, with the training's arguments. The worker registers it later."""
        args = dict(model_args) if isinstance(model_args, Mapping) else dict(vars(model_args))
        self._on_several_devices = _names_several(args.get("device"))
        run = self._started(args)
        if self._on_several_devices and run.id:
            os.environ[_RUN_OF_CHILDREN] = run.id

    # What the callbacks read and write.

    @property
    def metrics_queue(self) -> EpochTexts:
        """Metrics by epoch that wait for their first request. Writing `[epoch] = text` saves at once."""
        return self._waiting

    @metrics_queue.setter
    def metrics_queue(self, given: Mapping[int, Any]) -> None:
        if given is not self._waiting:
            self._waiting.clear()
            self._waiting.update(given)

    @property
    def metrics_upload_failed_queue(self) -> EpochTexts:
        """Metrics by epoch that the hub has not accepted yet. They are retried automatically, also after a restart."""
        return self._failed

    @metrics_upload_failed_queue.setter
    def metrics_upload_failed_queue(self, given: Mapping[int, Any]) -> None:
        if given is not self._failed:
            self._failed.clear()
            self._failed.update(given)

    @property
    def timers(self) -> Timers:
        """When something was last passed on, for the callbacks' own limits; the outbox keeps the limits of the hub."""
        return self._timers

    @timers.setter
    def timers(self, given: Mapping[str, float]) -> None:
        self._timers = Timers(self._cadence, given)

    @property
    def model_id(self) -> str | None:
        """The model's id at the hub; None until the hub has responded."""
        # The HUB is the first destination; another one may know the run under an id of its own.
        found = self._run.destinations[0].remote_id if self._run is not None else None
        return found or self.model.data.get("id")

    @property
    def model_url(self) -> str | None:
        """The address of the model's web page; None until the hub has responded."""
        if self.model_id:
            return f"{self._target.web_url.rstrip('/')}/models/{self.model_id}"
        # A training on several GPUs passes this to its processes as the name of the model.
        return self.filename if self._on_several_devices else None

    @property
    def alive(self) -> bool:
        """Whether the run is active. Setting False ends it: heartbeats stop; what is owed is still sent."""
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        with self._guard:
            run, self._alive = self._run, bool(alive)
        if not alive and run is not None:
            os.environ.pop(_RUN_OF_CHILDREN, None) if not _inherited_run() else None
            survive("end of the run", lambda: run.finish(timeout=0), strict=False)

    # Uploading.

    def upload_metrics(self) -> None:
        """Do nothing: metrics are saved for sending when they are written. The callbacks call this."""

    def upload_model(
        self, epoch: int, weights: str, is_best: bool = False, map: float = 0.0, final: bool = False
    ) -> None:
        """Save a copy of a checkpoint for sending. `final` waits for the hub, up to the session's deadline.

        A missing file is logged. If the final `best.pt` is missing, `last.pt` of the same folder is sent instead.
        """
        path = Path(weights)
        if final and not path.is_file() and path.with_name("last.pt").is_file():
            _LOG.warning("there is no %s; the last checkpoint is sent as the final one", path.name)
            path = path.with_name("last.pt")
        if not path.is_file():
            _LOG.warning("there is no checkpoint %s, so none is sent", path)
            return

        def save() -> None:
            run = self._started()
            run.save_checkpoint(path, epoch=epoch, is_best=bool(is_best), map=map, final=final)
            if final:
                self._wait(run)

        survive("checkpoint", lambda: self._cadence.timed(save), strict=False)

    def request_queue(
        self,
        request_func: Callable[..., Any],
        retry: int = 3,
        timeout: float = 30,
        thread: bool = True,
        verbose: bool = True,
        progress_total: int | None = None,
        stream_response: bool | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call `request_func`, with up to `retry` retries within `timeout` seconds; return the last response.

        `thread=True` calls it in the background and returns None at once. `metrics={epoch: text}` that could not
        be sent are saved to the outbox. `progress_total` and `stream_response` read the response to its end.
        """
        metrics = kwargs.get("metrics")

        def call() -> Any:
            response = requesting.attempt(
                lambda: request_func(*args, **kwargs),
                retry=retry,
                timeout=timeout,
                verbose=verbose,
                drain=requesting.drained if progress_total or stream_response else lambda _response: None,
                stop=self._background.stop,
            )
            if metrics and (response is None or not 200 <= response.status_code < 300):
                self.metrics_upload_failed_queue.update(metrics)
            return response

        return self._background.put(call) if thread else call()

    _should_retry = staticmethod(requesting.should_retry)

    def _get_failure_message(self, response: Any, retry: int, timeout: float) -> str:
        return requesting.failure_message(response, retry, timeout)

    def _parse_identifier(self, identifier_: str) -> tuple[str | None, str | None, str | None]:
        """The key, the model id and the file name in an identifier."""
        found = identifier.parse(identifier_, web_url=self._target.web_url, exists=os.path.isfile)
        return found.api_key, found.model_id, found.filename

    def _set_train_args(self) -> None:
        self.train_args = hub_model.train_args(self.model.data)
        self.model_file = hub_model.model_file(self.model.data)

    def _started(self, args: Mapping[str, object] | None = None) -> Run:
        """The run: started if there is none, continued if it has ended."""
        with self._guard:
            if self._run is None or not self._alive:
                resume = self._run.id if self._run is not None else _inherited_run()
                if not self._is_settled:
                    self._target, self._others, self._is_settled = _hub(
                        self._home, self._options["config"], self._names
                    )
                self._run = start_run(
                    self._identifier,
                    args=args,
                    destination=[self._target.name, *self._others] if self._is_settled else self._names,
                    resume=resume,
                    **self._options,
                )
                self._alive = True
            return self._run

    def _log(self, epoch: int, text: object) -> None:
        def save() -> None:
            self._started().log_metrics(metrics_mapping(text), epoch=epoch)

        survive("metrics", save, strict=False)

    def _wait(self, run: Run) -> None:
        with UploadBar(self._home, *(each.id for each in run.destinations)) as bar:
            left = run.wait(timeout=self._deadline, each=bar.show)
        if left:
            _LOG.warning("run %s: %s", run.id, describe(left))


def _hub(
    home: Home, config: str | os.PathLike[str] | None, names: Sequence[str] | None
) -> tuple[DestinationSettings, list[str], bool]:
    """The HUB among the destinations with these names, else among the default ones, else the first HUB of the configuration.

    And the names of the others, and whether that is settled: the configuration may be unreadable for the moment.
    """
    settings, is_settled = readable_settings(home, config)
    is_known = names is not None and (is_settled or set(names) <= set(settings.destinations))
    found = [settings.destination(each) for each in (names if is_known and names else settings.defaults)]
    chosen = next((each for each in found if each.type == "hub"), found[0])
    if (names is None or not is_settled) and chosen.type != "hub":
        chosen = next((each for each in settings.destinations.values() if each.type == "hub"), chosen)
    if chosen.type != "hub":
        hint = "name one of type hub, or use hubqueue.start_run, which serves every type"
        raise ConfigError((f"destination {chosen.name} is of type {chosen.type}, not hub",), hint=hint)
    others = [each.name for each in found if each is not chosen] if chosen in found else []
    return chosen, others, is_settled


def _inherited_run() -> str | None:
    """The run id of the training that started this process as one of several; None otherwise."""
    return os.environ.get(_RUN_OF_CHILDREN) if "LOCAL_RANK" in os.environ else None


def _names_several(device: object) -> bool:
    if isinstance(device, str):
        return device.strip("[] ").count(",") > 0
    return isinstance(device, list | tuple) and len(device) > 1
