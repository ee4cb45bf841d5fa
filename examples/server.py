"""A whole server of the http protocol of hubqueue (docs/http.md). It keeps each run in a folder.

    pip install starlette uvicorn
    RUNS_TOKEN=… RUNS_KEY=… uvicorn examples.server:app

RUNS_TOKEN and RUNS_KEY are the secrets of `hubqueue login`; without RUNS_KEY no signature is checked. RUNS_FOLDER is the
folder (default: runs). `touch runs/RUN/cancelled` cancels a training. Put a proxy with TLS before it.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

FOLDER = Path(os.environ.get("RUNS_FOLDER", "runs"))
TOKEN, KEY = os.environ["RUNS_TOKEN"], os.environ.get("RUNS_KEY", "")


async def respond(request):
    check(request)
    run_id, *path = request.path_params.get("path", "").split("/")
    run = FOLDER / run_id
    is_run = re.fullmatch(r"[\w-]+", run_id) and (run / "run.json").is_file()
    require(is_run or not run_id, 404, f"there is no run {run_id}")
    if request.method == "PUT" and path[:1] == ["files"]:
        return JSONResponse({"received": True, "offset": await put(request, inside(run, *path[1:]))})
    content = await request.body()
    compare(request, hashlib.sha256(content))
    return await asyncio.to_thread(handle, request, run, path, json.loads(content or b"{}"))


def handle(request, run, path, sent):
    match request.method, path:
        case "GET", [] if run == FOLDER:
            known = sorted(map(load, FOLDER.glob("*/run.json")), key=lambda each: each["started_at"])
            return JSONResponse({"runs": known[: int(request.query_params.get("limit", len(known)))]})
        case "GET", []:
            manifests = [load(each) for each in run.glob("manifest/*.json")]
            return JSONResponse({**load(run / "run.json"), "checkpoints": manifests})
        case "GET" | "HEAD", ["files", *parts] if (file := inside(run, *parts)).is_file():
            more = {"Repr-Digest": field(hash_of(file))} if "Want-Repr-Digest" in request.headers else {}
            return FileResponse(file, headers={"Upload-Offset": str(file.stat().st_size), **more})
        case "POST", [] if re.fullmatch(r"[\w-]+", sent["id"]):
            run = FOLDER / sent["id"]
            keep(run / "run.json", {**sent, "state": "running", "started_at": time.time()})
        case "POST", ["end"]:
            keep(run / "run.json", load(run / "run.json") | sent)
        case "POST", ["metrics" | "manifest" | "heartbeat" as what]:
            wrong = remove_wrong(run, sent) if what == "manifest" else []
            require(not wrong, 409, f"missing, or not as in the manifest and removed: {wrong}")
            key = hashlib.sha256(request.headers.get("Idempotency-Key", "").encode()).hexdigest()
            keep(run / what / f"{key}.json", sent)  # a repeat has the same key, so it replaces itself
        case _:
            raise HTTPException(404, "not found")
    return JSONResponse({"received": True, "id": run.name, "cancelled": (run / "cancelled").exists()})


def require(condition, status, message):
    if not condition:
        raise HTTPException(status, message)


def check(request):
    """Refuse a request without the token, or with a wrong signature or time."""
    names = ("Authorization", "Hubqueue-Signature", "Content-Digest", "Content-Range", "Idempotency-Key")
    token, signature, *signed = (request.headers.get(each, "") for each in names)
    require(hmac.compare_digest(token.encode(), f"Bearer {TOKEN}".encode()), 401, "wrong token")
    if KEY:
        at, _, given = signature.removeprefix("t=").partition(",v1=")
        target = b"?".join(filter(None, (request.scope["raw_path"], request.scope["query_string"])))
        text = "\n".join([request.method, target.decode(), at, *signed])
        made = hmac.new(KEY.encode(), text.encode(), "sha256").hexdigest()
        require(hmac.compare_digest(made.encode(), given.encode()), 401, "wrong signature")
        require(abs(time.time() - int(at)) <= 300, 412, "the clocks differ by more than 5 minutes")


def field(digest):
    return f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"


def compare(request, digest):
    require(request.headers.get("Content-Digest") == field(digest), 409, "the body does not fit its digest")


def hash_of(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def load(path):
    return json.loads(path.read_bytes())


def keep(path, value):
    """Write a file that is whole or not there, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
        path.with_suffix(".part").replace(path)
        os.fsync(file.fileno())  # the new name


def inside(run, *path):
    found = (run / "files").joinpath(*path).resolve()
    require(found.is_relative_to((run / "files").resolve()), 400, "invalid path")
    return found


def remove_wrong(run, manifest):
    """The files that are not those of the manifest. They are removed, so that the client sends them again."""
    paths = {inside(run, manifest["folder"], each["path"]): each["sha256"] for each in manifest["files"]}
    wrong = [path for path, sha in paths.items() if not path.is_file() or hash_of(path).hexdigest() != sha]
    for path in wrong:
        path.unlink(missing_ok=True)
    return [path.name for path in wrong]


async def put(request, path):
    """Write from the offset on. What has come stays when the connection breaks: the manifest proves it."""
    size = path.stat().st_size if path.is_file() else 0
    found = re.fullmatch(r"bytes (\d+)-\d+/\d+", request.headers.get("Content-Range", "bytes 0-0/0"))
    require(found, 416, "invalid Content-Range")
    require(int(found[1]) <= size, 409, f"the file has {size} bytes")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("r+b" if size else "wb") as out:
        out.seek(int(found[1]))
        async for block in request.stream():
            digest.update(block)
            out.write(block)
        out.flush()
        await asyncio.to_thread(os.fsync, out.fileno())
    compare(request, digest)
    return path.stat().st_size


def refuse(_request, exc):
    return JSONResponse({"message": getattr(exc, "detail", repr(exc))}, getattr(exc, "status_code", 400))


routes = [Route(path, respond, methods=["GET", "POST", "PUT"]) for path in ("/runs", "/runs/{path:path}")]
errors = (HTTPException, ClientDisconnect, KeyError, ValueError)
app = Starlette(routes=routes, exception_handlers=dict.fromkeys(errors, refuse))
