"""A HUB's model, as a training session sees it: what the hub says about it, and what follows for the training.

The rules are those of the HUB's own clients (ultralytics 8.2 to 8.3): a trained model is only loaded, one with
weights of an interrupted training goes on from them, any other begins with its parent's weights or its
architecture. Reading the model is the only network that a session touches, once, before the training.
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
# How long a session waits for the hub to tell about a model, in seconds, and between two tries.
PATIENCE = 30.0
_PAUSE = 1.0
# Models that got new weights under a new name (YOLOv3 and YOLOv5, by their makers' release notes).
_RENAMED = re.compile(r"(yolov5[nsmlx]6?|yolov3(?:-tiny|-spp)?)\.pt$")
_NAMED_BACK = re.compile(r"(yolov5[nsmlx]6?|yolov3(?:-tiny|-spp)?)u\.yaml$")


def read_model(keys: Keys, target: DestinationSettings, model_id: str) -> dict[str, Any]:
    """Ask the hub what it knows about a model, with patience for trouble that passes.

    Raises `UnknownModel` when the hub does not know the model, `ModelUnavailable` when it cannot be asked.
    """
    told: list[dict[str, Any] | Exception] = []

    def ask() -> None:
        try:
            told.append(_ask(keys, target, model_id, time.monotonic() + PATIENCE))
        except Exception as error:
            told.append(error)

    # On a thread of its own: a name server that does not answer cannot be interrupted, only left behind.
    asking = threading.Thread(target=ask, name="hubqueue-read-model", daemon=True)
    asking.start()
    asking.join(PATIENCE + 5)
    found = told[0] if told else _unavailable(target, model_id, f"no answer in {PATIENCE:g} s")
    if isinstance(found, Exception):
        raise found
    return found


def _ask(keys: Keys, target: DestinationSettings, model_id: str, deadline: float) -> dict[str, Any]:
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
    hint = f"hubqueue check finds out why; a key is stored with: hubqueue login {target.name}"
    return ModelUnavailable(f"{target.name} did not tell about model {model_id}: {reason}", hint=hint)


def is_trained(data: Mapping[str, Any]) -> bool:
    """Whether the model's training is complete: its weights can be loaded, and nothing is owed."""
    return data.get("status") == "trained"


def weights_url(data: Mapping[str, Any], weight: str = "best") -> str | None:
    """The address of the `last` weights (to resume from), or of the `best` or `parent` ones; None without any."""
    found = data.get("resume" if weight == "last" else "weights")
    return found if isinstance(found, str) and found else None


def model_file(data: Mapping[str, Any]) -> str | None:
    """What a training of this model starts with: an address of weights, or an architecture such as `yolov8n.yaml`."""
    if is_trained(data):
        return weights_url(data)
    if data.get("has_last_weights"):
        return current_name(weights_url(data, "last"))
    return current_name(weights_url(data, "parent") if data.get("is_pretrained") else data.get("cfg"))


def train_args(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments that the hub wants the model trained with; None for a trained one.

    Raises `UnknownModel` while the hub has no data set for it.
    """
    if is_trained(data):
        return None
    if data.get("has_last_weights"):
        args: Any = {"data": data.get("data"), "resume": True}
    else:
        args = data.get("train_args")
    if not isinstance(args, Mapping) or not args.get("data"):
        hint = "the hub may still be at work on it: wait a minute and try again"
        raise UnknownModel("the hub has no data set for this model yet", hint=hint)
    return dict(args)


def current_name(file: str | None) -> str | None:
    """The file that stands in for one whose weights were released anew: `yolov5n.pt` is `yolov5nu.pt`.

    Their architecture kept its name: `yolov5nu.yaml` is `yolov5n.yaml`.
    """
    if file is None or file.startswith(("http://", "https://")):
        return file
    return _NAMED_BACK.sub(r"\1.yaml", _RENAMED.sub(r"\1u.pt", file))


class Saved:
    """What an upload that was saved answers with, in the shape of an HTTP response: 202, nothing to read."""

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
    """The model of a session, with the methods of the original's that scripts call. `data` is what the hub told."""

    def __init__(self, session: HUBTrainingSession) -> None:
        self._session = session
        self.data: dict[str, Any] = {}

    @property
    def id(self) -> str | None:
        """The id at the hub; None until the hub has answered."""
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
        """Begin the run, whose heartbeats the worker sends at the configured interval."""
        self._session._live()

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
