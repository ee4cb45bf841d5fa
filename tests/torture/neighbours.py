"""Two environments share one home: trainings and workers of two hubs, each with its own address and key.

A hub must get the runs that were started for it, all of them, and no request of the other's; and no key but its own.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from stage import Process, end, environ_of, hubqueue, kill, start_worker
from torture.puppet import Puppet, pause, start_python

from hubqueue.sandbox import Sandbox

KEYS = {"a": "key-of-environment-a", "b": "key-of-environment-b"}
# A control: a worker that sends whatever the home owes to the address and with the key that it has itself.
_GREEDY = """
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker import worker
from hubqueue.worker.routes import Route
from hubqueue.worker.service import Service

def routes(outbox, keyless=False):
    own = outbox.config.destination("hub")
    return [Route(each.name, own, lambda: outbox.credentials.keys(own)) for each in outbox.addresses.all()]

worker.routes = routes
with open_outbox() as outbox:
    print("starts", flush=True)
    Service(outbox, emit=lambda _fact: None).run()
"""


@dataclass(slots=True)
class Addressed:
    """The counts over homes. `crossed` are models and requests at the wrong hub, or with the wrong key."""

    trainings: int = 0
    workers: int = 0
    kills: int = 0
    requests: int = 0
    acknowledged: int = 0
    missing: int = 0
    crossed: int = 0
    pending: int = 0

    def add(self, other: Addressed) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def address_round(seed: str, folder: Path, turns: int, *, greedy: bool = False) -> Addressed:
    """One home with trainings and workers of two environments, some of them killed."""
    dice, counted = random.Random(seed), Addressed()
    folder.mkdir()
    with (
        Sandbox(folder / "hub-a", keys=(KEYS["a"],)) as a,
        Sandbox(folder / "hub-b", keys=(KEYS["b"],)) as b,
    ):
        hubs = {"a": a, "b": b}
        environs = {name: _environ(folder / "home", hub, KEYS[name]) for name, hub in hubs.items()}
        trainings: list[Puppet] = []
        for turn in range(turns):
            workers = [
                (_start_greedy if greedy else start_worker)(environs[name])
                for name in dice.choice(("a", "b", "ab"))
            ]
            counted.workers += len(workers)
            new = [
                _train(folder, f"{name}-{turn}-{number}", environs[name], dice)
                for number, name in enumerate(dice.choice(("a", "b", "ab", "ba")))
            ]
            trainings += new
            for each in new:
                each.end("finish" if dice.random() < 0.7 else "kill")
            pause(dice.uniform(0.0, 0.3))
            counted.kills += sum(_end(each, dice) for each in workers)
        for name in () if greedy else dice.sample(("a", "b"), 2):
            hubqueue(environs[name], "drain", "--timeout", "60")
        counted.trainings = len(trainings)
        _judge(hubs, trainings, counted)
    shutil.rmtree(folder)
    return counted


def _environ(home: Path, hub: Sandbox, key: str) -> dict[str, str]:
    settings = {"HUBQUEUE_RATE_LIMITS__METRICS": "0", "HUBQUEUE_RATE_LIMITS__CKPT": "0"}
    return environ_of(home, hub.url, HUB_API_KEY=key, **settings)


def _start_greedy(environ: dict[str, str]) -> Process:
    started = start_python(_GREEDY, environ)
    assert started.stdout is not None
    started.stdout.readline()
    return started


def _train(folder: Path, name: str, environ: dict[str, str], dice: random.Random) -> Puppet:
    """A training with some epochs and a final checkpoint. One of four starts its own worker."""
    content = dice.randbytes(5_000)
    (folder / f"{name}.pt").write_bytes(content)
    training = Puppet(folder, name, environ, worker="auto" if dice.random() < 0.25 else "none")
    training.do("log", dice.randrange(3, 12))
    training.do("save", folder / f"{name}.pt", hashlib.sha256(content).hexdigest(), "final")
    return training


def _end(worker: Process, dice: random.Random) -> bool:
    """End a worker. Returns whether it was killed."""
    if dice.random() < 0.5:
        kill(worker)
        return True
    end(worker)
    return False


def _judge(hubs: dict[str, Sandbox], trainings: list[Puppet], counted: Addressed) -> None:
    for name, hub in hubs.items():
        requests = hub.requests
        counted.requests += len(requests)
        # The hub accepts no key but its own.
        counted.crossed += sum(each.status == 401 for each in requests)
        models = {hub.model(each)["meta"]["name"].removesuffix(".yaml"): each for each in hub.models}
        counted.crossed += sum(not model.startswith(name) for model in models)
        for training in trainings:
            if not training.name.startswith(name):
                continue
            model = models.get(training.name)
            epochs = hub.metrics(model) if model else {}
            finals = [each.sha256 for each in hub.checkpoints(model)] if model else []
            for receipt in training.receipts():
                counted.acknowledged += 1
                is_there = receipt.epoch in epochs if receipt.what == "epoch" else receipt.sha256 in finals
                counted.missing += not is_there
