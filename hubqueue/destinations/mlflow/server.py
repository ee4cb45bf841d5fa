"""Requests to an MLflow server: its REST API, and the proxy that stores its artifacts.

The response proves a delivery: 2xx, complete, and a JSON object. MLflow's own refusals are JSON with an `error_code`,
except those of its authentication and of a proxy that is off: they are texts, which are recognized here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Blocked, Key, Outcome, Rejected, RetryLater, Scope
from hubqueue.destinations.mlflow.keys import authorization
from hubqueue.destinations.wire.api import Api, ApiResponse
from hubqueue.destinations.wire.body import Body, Bytes
from hubqueue.destinations.wire.message import MAX_RESPONSE, Response, phrase_of
from hubqueue.domain.redact import clean

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
LARGE = 16 * 1024 * 1024
"""The largest response with runs or points, in bytes."""
_JSON = {"Content-Type": "application/json"}


class Server:
    """The API of one server. Safe to use from several threads."""

    def __init__(self, settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> None:
        self.name, self.keys, self._web_url = settings.name, keys, settings.web_url
        self.api: Api[Key] = Api(settings, keys, authorization, optional=True, is_own=_is_own)

    def post(
        self,
        endpoint: str,
        payload: Mapping[str, Any],
        attempt: Attempt,
        *,
        idempotency_key: str | None = None,
        unknown: Scope = Scope.RUN,
        judged: Collection[int] = (),
        most: int = MAX_RESPONSE,
    ) -> ApiResponse | Outcome:
        """The response to a JSON object, such as `runs/create`; the outcome if there is none.

        The caller judges the server's own responses with a status in `judged`.
        """
        body = Bytes(json.dumps(payload, allow_nan=False).encode())
        return self._ask("POST", API + endpoint, body, attempt, idempotency_key, unknown, judged, most)

    def get(
        self,
        endpoint: str,
        query: Mapping[str, str],
        attempt: Attempt,
        *,
        unknown: Scope = Scope.RUN,
        judged: Collection[int] = (),
        most: int = MAX_RESPONSE,
    ) -> ApiResponse | Outcome:
        """The response to a question, as of `post`."""
        path = f"{API}{endpoint}?{urlencode(query)}"
        return self._ask("GET", path, Bytes(b""), attempt.silent(), None, unknown, judged, most)

    def _ask(
        self,
        method: str,
        path: str,
        body: Body,
        attempt: Attempt,
        idempotency_key: str | None,
        unknown: Scope,
        judged: Collection[int],
        most: int,
    ) -> ApiResponse | Outcome:
        response = self.api.ask(
            method,
            path,
            body,
            attempt,
            headers=_JSON if method == "POST" else None,
            idempotency_key=idempotency_key,
            unknown=unknown,
            judged=(*judged, 400),
            most=most,
        )
        if not isinstance(response, ApiResponse):
            return response
        if response.status == 400 and 400 not in judged:
            return self.refused(response)
        if response.json is None:
            return self.api.unexpected(response)
        return response

    def refused(self, response: ApiResponse) -> Outcome:
        """The outcome of a 400: of a run that was deleted, or of an entry that MLflow does not accept."""
        message = message_of(response)
        if is_deleted(message):
            return self.deleted()
        return Rejected(clean(f"{phrase_of(response.status)}: {message or code_of(response)}"))

    def deleted(self) -> Blocked:
        """The outcome of a request for a run that a person has deleted."""
        return Blocked(f"the run was deleted at {self.name}: restore it (mlflow runs restore)", Scope.RUN)

    def page(self, experiment_id: str, run_id: str) -> str:
        """The web page of a run."""
        return f"{self._web_url}/#/experiments/{experiment_id}/runs/{run_id}"

    def missing(self, what: str) -> RetryLater:
        """The outcome of a response without a required field."""
        return self.api.missing(what)

    def secrets(self) -> tuple[str, ...]:
        """All secrets of this server."""
        return tuple(part for key in self.keys() for part in key.parts)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self.api.close()


def code_of(response: ApiResponse) -> str:
    """MLflow's code of an error, such as RESOURCE_DOES_NOT_EXIST; empty without one."""
    return _text(response, "error_code")


def message_of(response: ApiResponse) -> str:
    """MLflow's words for an error; empty without any."""
    return _text(response, "message")


def is_deleted(message: str) -> bool:
    """Whether MLflow refuses something because its run or its experiment was deleted."""
    return "must be in the 'active' state" in message


def _text(response: ApiResponse, name: str) -> str:
    found = (response.json or {}).get(name)
    return found if isinstance(found, str) else ""


def is_proxy_off(response: Response) -> bool:
    """Whether a server says that it does not store artifacts."""
    return response.status == 503 and b"--no-serve-artifacts" in response.body


def _is_own(response: Response) -> bool:
    """Whether a refusal that is no JSON object is MLflow's own."""
    if response.status == 401:
        return 'realm="mlflow"' in response.headers.get("WWW-Authenticate", "")
    if response.status == 403:
        return response.body.strip() == b"Permission denied"
    return is_proxy_off(response)
