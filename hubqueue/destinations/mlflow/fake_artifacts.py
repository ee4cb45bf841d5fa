"""The artifacts of the fake MLflow server: what its proxy stores, lists and deletes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from hubqueue.destinations.mlflow.fake_runs import FakeRun
from hubqueue.sandbox.archive import Fact
from hubqueue.sandbox.request import BLOCK, Request
from hubqueue.sandbox.response import Dialect, Headers, Refused, Response, as_json
from hubqueue.sandbox.routes import Prepared, RoutedService, now_text, responding

PROXY = r"/api/2\.0/mlflow-artifacts/artifacts"
INVALID, UNKNOWN = "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"
_ARTIFACT = re.compile(PROXY + r"/(.+)")
_EPOCH = re.compile(r"/checkpoints/(?:epoch|step)-0*([0-9]+)")
_PROXY_OFF = (
    "Endpoint: /api/2.0/mlflow-artifacts/artifacts disabled due to the mlflow server running with `--no-serve-artifacts`. "
    "To enable artifacts server functionality, run `mlflow server` with `--serve-artifacts`"
)


@dataclass(frozen=True, slots=True)
class MlflowDialect(Dialect):
    """Refusals in JSON; but in plain text those of the authentication, and of a proxy that is off."""

    def refusal(self, status: int, reason: str, *, headers: Headers = (), close: bool = False) -> Response:
        """The response that refuses a request."""
        if status == 401:
            headers = (*headers, ("WWW-Authenticate", 'Basic realm="mlflow"'))
            return Response(status, b"You are not authenticated.", "text/html", headers, close=close)
        if status == 403:
            return Response(status, b"Permission denied", "text/html", headers, close=close)
        if reason == _PROXY_OFF:
            return Response(status, reason.encode(), "text/html", headers, close=close)
        return Dialect.refusal(self, status, reason, headers=headers, close=close)


class FakeArtifacts(RoutedService):
    """The part of the server that has its artifacts."""

    serves_artifacts: bool
    runs_by_id: dict[str, FakeRun]

    def known(self, run_id: object, *, active: bool = True) -> FakeRun:
        """A run by its id. Raises `Refused`; with `active` also for a deleted one."""
        with self._archive.changed:
            run = self.runs_by_id.get(str(run_id))
        if run is None:
            raise Refused(404, f"{UNKNOWN}: Run with id={run_id} not found")
        if active and run.is_deleted:
            state = "must be in the 'active' state. Current state is deleted."
            raise Refused(400, f"{INVALID}: The run {run.id} {state}")
        return run

    def prepared(self, make: Callable[[], tuple[Fact, Response]]) -> Prepared:
        """A request that makes one fact."""
        return Prepared(lambda: self._archive.keep(None, make))

    def list_artifacts(self, request: Request, _: str) -> Prepared:
        """List what is in a folder."""
        request.body.drain()
        self._need_proxy()
        run, path = self._target(last(request, "path"))
        with self._archive.changed:
            return responding(as_json(200, {"files": found} if (found := run.listed(path)) else {}))

    def store_artifact(self, request: Request, _: str) -> Prepared:
        """Store an artifact."""
        self._need_proxy()
        request.need_length()
        run, path = self._target(_artifact(request))
        arriving, size = self._archive.incoming(), 0
        try:
            with arriving.open("wb") as file:
                while block := request.body.read(BLOCK):
                    size += file.write(block)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise

        def make() -> tuple[Fact, Response]:
            stored = self._archive.store(arriving, run.id, run.stored + 1, "artifact")
            fact = {"fact": "mlflow_file", "run": run.id, "at": now_text(), "path": path}
            return {**fact, "file": stored, "size": size}, Response(200)

        epoch = _EPOCH.search(f"/{path}")
        return Prepared(
            lambda: self._archive.keep(None, make),
            lambda: arriving.unlink(missing_ok=True),
            epochs=(int(epoch[1]),) if epoch else (),
        )

    def serve_artifact(self, request: Request, _: str) -> Prepared:
        """Send an artifact."""
        request.body.drain()
        self._need_proxy()
        run, path = self._target(_artifact(request))
        if path not in run.files:
            raise Refused(404, f"{UNKNOWN}: No such artifact: {path!r}")
        return responding(Response(200, content_type="application/octet-stream", file=run.files[path].file))

    def delete_artifact(self, request: Request, _: str) -> Prepared:
        """Delete an artifact, or a folder of them."""
        request.body.drain()
        self._need_proxy()
        run, path = self._target(_artifact(request))

        def make() -> tuple[Fact, Response]:
            return {"fact": "mlflow_deleted", "run": run.id, "at": now_text(), "path": path}, as_json(200, {})

        return self.prepared(make)

    def _need_proxy(self) -> None:
        if not self.serves_artifacts:
            raise Refused(503, _PROXY_OFF)

    def _target(self, path: str) -> tuple[FakeRun, str]:
        """The run with an artifact, and the path below the root of its artifacts."""
        if "#" in path or ".." in path.split("/"):
            raise Refused(400, f"{INVALID}: Invalid path")
        _, run_id, root, rest = [*path.split("/", 3), "", "", ""][:4]
        if root != "artifacts":
            raise Refused(400, f"{INVALID}: Invalid path")
        return self.known(run_id, active=False), rest


def error_body(reason: str) -> bytes:
    """The body of a refusal. A reason may begin with MLflow's code."""
    code, colon, message = reason.partition(": ")
    if not colon or not code.isupper():
        code, message = "INTERNAL_ERROR", reason
    return json.dumps({"error_code": code, "message": message}).encode()


def last(request: Request, name: str) -> str:
    """The last value of a name in the query; empty without one."""
    return request.query.get(name, [""])[-1]


def _artifact(request: Request) -> str:
    found = _ARTIFACT.fullmatch(request.path)
    return unquote(found[1]) if found else ""
