"""What Platform's events say, and what an upload of several steps remembers. Pure rules.

Field names are those of the contract in ultralytics-platform 0.1.99 (`training.metrics`) and of the callback in
ultralytics 8.4.190.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from hubqueue.destinations.wire.kept import is_kept_name
from hubqueue.domain.lane import RunRef

# What the package tells beside the metrics of an epoch, under the names that its own loggers give.
_BESIDE = ("fitness", "best_fitness")
_MODEL_INFO = {
    "model/parameters": "parameters",
    "model/GFLOPs": "gflops",
    "model/speed_PyTorch(ms)": "speedMs",
}
_LONGEST_NAME = 128


def epoch_end(epoch: int, payload: str) -> dict[str, Any]:
    """The data of an `epoch_end`: metrics, with fitness and the model's size beside them."""
    logged = json.loads(payload)
    beside = {*_BESIDE, *_MODEL_INFO}
    data: dict[str, Any] = {
        "epoch": epoch,
        "metrics": {name: value for name, value in logged.items() if name not in beside},
    }
    data |= {name: logged[name] for name in _BESIDE if name in logged}
    info = {short: logged[name] for name, short in _MODEL_INFO.items() if name in logged}
    return data | ({"modelInfo": info} if info else {})


def number_of(run: RunRef) -> str | None:
    """What the hub calls this start of the training, as JSON text; None at a hub that counts no starts."""
    return _text(run, "run")


def bound(event: str, data: Mapping[str, Any], run: RunRef) -> dict[str, Any]:
    """The data of an event with what only the hub's answers told: the number of this start, the final file."""
    told = dict(data)
    number, file = number_of(run), _text(run, "file")
    if number is not None and event != "console_output":
        told["runId"] = json.loads(number)
    if event == "training_complete" and file is not None:
        told["results"] = {**told.get("results", {}), **json.loads(file)}
    return told


def key_of(idempotency_key: str, event: str, address: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """The key of one of several different requests of a batch: the same for the same event to the same address.

    An announcement is about one stored object; of the same checkpoint there may be a second one.
    """
    text = json.dumps([event, dict(address), data.get("modelPath")], sort_keys=True)
    return str(uuid.uuid5(uuid.UUID(idempotency_key), hashlib.sha256(text.encode()).hexdigest()))


def own_name(plain: Mapping[str, str], run_id: str) -> dict[str, str]:
    """The address of a training under a name that no other training has."""
    return {"project": plain["project"], "name": f"{plain['name'][: _LONGEST_NAME - 13]}-{run_id[:12]}"}


def is_over(status: int, answer: Mapping[str, Any] | None) -> bool:
    """Whether the model of a `training_started` is gone, or has ended for good."""
    return status in (404, 410) or (answer or {}).get("cancelled") is True


# Progress: how many starts may have been taken.


def tries_in(progress: str | None) -> int:
    """How many `training_started` may have been taken without an answer."""
    return int(_read(progress).get("tries", 0))


def progress_of_tries(tries: int) -> str | None:
    """What to remember of them."""
    return json.dumps({"tries": tries}) if tries else None


# Progress: the place of the bytes. What is remembered is a name, of no use to anybody without a key. A signed URL is
# a credential: it is used within its attempt, and the next attempt asks for another one.


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes that the storage has, not announced yet."""

    object: str
    path: str | None

    @classmethod
    def of(cls, place: Mapping[str, Any], secrets: Iterable[str] = ()) -> Self | None:
        """Out of the answer that gave the place; None when there is something in it that must not be kept."""
        found, path = place.get("gcsPath"), place.get("uploadPath")
        if not is_kept_name(found, secrets) or not (path is None or is_kept_name(path, secrets)):
            return None
        return cls(found, path)

    @property
    def data(self) -> dict[str, Any]:
        """The data of `checkpoint_saved`, but for the number of the start."""
        return {"modelPath": self.object, **({"uploadPath": self.path} if self.path is not None else {})}

    def progress(self, run: RunRef) -> str:
        """What to remember: the bytes are of use only to this start of this model."""
        return json.dumps(
            {"object": self.object, "path": self.path, "model": run.remote_id, "run": number_of(run)}
        )


def staged_in(progress: str | None, run: RunRef) -> Staged | None:
    """The bytes that an earlier attempt has stored for this start of the training, if it did."""
    found = _read(progress)
    if (found.get("model"), found.get("run")) != (run.remote_id, number_of(run)):
        return None
    return Staged.of({"gcsPath": found.get("object"), "uploadPath": found.get("path")})


def _text(run: RunRef, name: str) -> str | None:
    found = run.remembered.get(name)
    return found if isinstance(found, str) else None


def _read(progress: str | None) -> dict[str, Any]:
    return json.loads(progress) if progress else {}
