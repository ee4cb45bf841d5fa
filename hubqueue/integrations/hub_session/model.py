"""A model of a HUB in a training session: the data that the hub returns, and how the training starts from it.

The rules are those of the HUB's own clients (ultralytics 8.2 to 8.3). A trained model is only loaded. A model with
weights of an interrupted training is resumed from them. Any other starts with its parent's weights or its
architecture. Reading the model is the only network access of a session, once, before the training.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.hub.transport import HubTransport
from hubqueue.domain.entry import Snapshot
from hubqueue.domain.errors import ModelUnavailable, UnknownModel
from hubqueue.domain.outcome import Blocked, Delivered, RetryLater, Scope

if TYPE_CHECKING:
    from hubqueue.integrations.hub_session.session import HUBTrainingSession

Keys = Callable[[], tuple[str, ...]]
# Seconds that a session waits for the data of a model, and between two attempts.
PATIENCE = 30.0
_PAUSE = 1.0
# Models with new weights under a new name (YOLOv3 and YOLOv5, from the release notes of ultralytics).
_RENAMED = re.compile(r"(yolov5[nsmlx]6?|yolov3(?:-tiny|-spp)?)\.pt$")
_NAMED_BACK = re.compile(r"(yolov5[nsmlx]6?|yolov3(?:-tiny|-spp)?)u\.yaml$")


def read_model(keys: Keys, target: DestinationSettings, model_id: str) -> dict[str, Any]:
    """Read a model's data from the hub; temporary errors are retried for up to `PATIENCE` seconds.

    Raises `UnknownModel` when the hub has no such model, `ModelUnavailable` when it cannot be read.
    """
    results: list[dict[str, Any] | Exception] = []

    def read() -> None:
        try:
            results.append(_read(keys, target, model_id, time.monotonic() + PATIENCE))
        except Exception as error:
            results.append(error)

    # On a separate thread: a look-up at a name server that does not respond cannot be interrupted, only abandoned.
    reading = threading.Thread(target=read, name="hubqueue-read-model", daemon=True)
    reading.start()
    reading.join(PATIENCE + 5)
    result = results[0] if results else _unavailable(target, model_id, f"no response in {PATIENCE:g} s")
    if isinstance(result, Exception):
        raise result
    return result


def _read(keys: Keys, target: DestinationSettings, model_id: str, deadline: float) -> dict[str, Any]:
    transport = HubTransport(target, keys, _no_body)
    pause = threading.Event()
    try:
        while True:
            outcome, data = transport.read_model(model_id)
            match outcome:
                case Delivered():
                    return data or {}
                case Blocked(reason, Scope.RUN):
                    hint = "check the model's address, and that the key belongs to its owner"
                    raise UnknownModel(f"{target.name} has no model {model_id}: {reason}", hint=hint)
                case RetryLater(reason, after):
                    wait = max(_PAUSE, after.total_seconds() if after else 0.0)
                    if time.monotonic() + wait > deadline:
                        raise _unavailable(target, model_id, reason)
                    pause.wait(wait)
                case other:
                    raise _unavailable(target, model_id, other.reason)
    finally:
        transport.close()


def _no_body(snapshot: Snapshot) -> BinaryIO:
    raise AssertionError(f"reading a model sends no {snapshot.name}")


def _unavailable(target: DestinationSettings, model_id: str, reason: str) -> ModelUnavailable:
    hint = f"hubqueue check finds out why; to store a key: hubqueue login {target.name}"
    return ModelUnavailable(f"cannot read model {model_id} from {target.name}: {reason}", hint=hint)


def is_trained(data: Mapping[str, Any]) -> bool:
    """Whether the model's training is complete: its weights can be loaded, and nothing is owed."""
    return data.get("status") == "trained"


def weights_url(data: Mapping[str, Any], weight: str = "best") -> str | None:
    """The URL of the `last` weights (to resume from), or of the `best` or `parent` ones; None without any."""
    found = data.get("resume" if weight == "last" else "weights")
    return found if isinstance(found, str) and found else None


def model_file(data: Mapping[str, Any]) -> str | None:
    """The file that a training of this model starts with: a URL of weights, or an architecture such as `yolov8n.yaml`."""
    if is_trained(data):
        return weights_url(data)
    if data.get("has_last_weights"):
        return current_name(weights_url(data, "last"))
    return current_name(weights_url(data, "parent") if data.get("is_pretrained") else data.get("cfg"))


def train_args(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The training arguments that the hub specifies for the model; None for a trained one.

    Raises `UnknownModel` while the hub has no data set for it.
    """
    if is_trained(data):
        return None
    if data.get("has_last_weights"):
        args: Any = {"data": data.get("data"), "resume": True}
    else:
        args = data.get("train_args")
    if not isinstance(args, Mapping) or not args.get("data"):
        hint = "the hub may still be preparing it: wait a minute and try again"
        raise UnknownModel("the hub has no data set for this model yet", hint=hint)
    return dict(args)


def current_name(file: str | None) -> str | None:
    """The present name of a model file: weights that were released again got a new name (`yolov5n.pt`: `yolov5nu.pt`).

    The architecture kept its old name (`yolov5nu.yaml`: `yolov5n.yaml`).
    """
    if file is None or file.startswith(("http://", "https://")):
        return file
    return _NAMED_BACK.sub(r"\1.yaml", _RENAMED.sub(r"\1u.pt", file))


class Saved:
    """The return value of an upload that was saved, in the form of an HTTP response: status 202, an empty stream."""

    status_code = 202
    ok = True
    reason = "Accepted"
    text = '{"message": "saved"}'

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def json(self) -> dict[str, str]:
        return {"message": "saved"}

    def iter_content(self, chunk_size: int = 1024) -> list[bytes]:
        return []


class Model:
    """The model of a session, with those methods of the original that scripts call. `data` is the hub's response."""

    def __init__(self, session: HUBTrainingSession) -> None:
        self._session = session
        self.data: dict[str, Any] = {}

    @property
    def id(self) -> str | None:
        """The id at the hub; None until the hub has responded."""
        return self._session.model_id

    def is_trained(self) -> bool:
        return is_trained(self.data)

    def is_resumable(self) -> bool:
        return bool(self.data.get("has_last_weights"))

    def is_pretrained(self) -> bool:
        return bool(self.data.get("is_pretrained"))

    def get_architecture(self) -> str | None:
        return self.data.get("cfg")

    def get_dataset_url(self) -> str | None:
        return self.data.get("data")

    def get_weights_url(self, weight: str = "best") -> str | None:
        return weights_url(self.data, weight)

    def start_heartbeat(self, interval: float = 300) -> None:
        """Start the run. The worker sends its heartbeats at the configured interval; `interval` is ignored."""
        self._session._started()

    def stop_heartbeat(self) -> None:
        """End the run."""
        self._session.alive = False

    def upload_metrics(self, metrics: Mapping[int, Any]) -> Saved:
        """Save the metrics of epochs to be sent."""
        for epoch, text in metrics.items():
            self._session._log(epoch, text)
        return Saved()

    def upload_model(self, epoch: int, weights: str, **options: Any) -> Saved:
        """Save a checkpoint to be sent, as `HUBTrainingSession.upload_model`."""
        self._session.upload_model(epoch, weights, **options)
        return Saved()
