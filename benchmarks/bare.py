"""The simple alternatives: a bare `requests` loop, a bare PUT of a file object, and hub-sdk's own calls.

Each is a separate process: `python -m benchmarks.bare HOW URL …`. Its last line of output is JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable

from benchmarks.receiver import MODEL
from benchmarks.timing import SCALARS


def loop(url: str, epochs: int, a_request: int) -> None:
    """Send metrics of `epochs` epochs over one kept connection, `a_request` epochs per request."""
    import requests

    text = json.dumps(SCALARS)
    with requests.Session() as session:
        session.headers["x-api-key"] = "key"
        for first in range(0, epochs, a_request):
            metrics = {str(epoch): text for epoch in range(first, min(epochs, first + a_request))}
            response = session.post(f"{url}/v1/models/{MODEL}", json={"metrics": metrics, "type": "metrics"})
            assert response.json()["success"] is True


def hub_sdk_loop(url: str, epochs: int, a_request: int) -> None:
    """The same with hub-sdk's `upload_metrics`."""
    model, text = _model(url), json.dumps(SCALARS)
    for first in range(0, epochs, a_request):
        metrics = {str(epoch): text for epoch in range(first, min(epochs, first + a_request))}
        response = model.upload_metrics(metrics)
        assert response is not None and response.status_code == 200


def put(url: str, path: str) -> None:
    """A bare PUT of an opened file."""
    import requests

    _report(lambda: _put(requests, url, path))


def hub_sdk_upload(url: str, path: str) -> None:
    """hub-sdk's `upload_model` of a final checkpoint."""
    model = _model(url)
    _report(lambda: model.upload_model(0, path, final=True).status_code)


def _put(requests: object, url: str, path: str) -> int:
    with open(path, "rb") as file:
        response: int = requests.put(f"{url}/put", data=file).status_code  # type: ignore[attr-defined]
    return response


def _model(url: str) -> object:
    os.environ.update(ULTRALYTICS_HUB_API=url, HUB_API_KEY="key-of-the-benchmarks", NO_PROXY="127.0.0.1")
    from hub_sdk import HUBClient

    return HUBClient().model(MODEL)


def _report(send: Callable[[], int]) -> None:
    """Print the seconds, and the growth of the memory at its peak in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    status = send()
    took = time.perf_counter() - start
    assert status == 200, status
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": took, "grown": grown * 1024}))


def main(how: str, url: str, *arguments: str) -> None:
    match how:
        case "loop":
            loop(url, *map(int, arguments))
        case "hub-sdk-loop":
            hub_sdk_loop(url, *map(int, arguments))
        case "put":
            put(url, *arguments)
        case "hub-sdk-upload":
            hub_sdk_upload(url, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
