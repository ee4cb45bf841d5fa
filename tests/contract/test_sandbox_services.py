"""The sandbox's server knows no protocol: a test's own service, and the services of the destinations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hubqueue.destinations.services import services
from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox.archive import Archive, Fact
from hubqueue.sandbox.request import Request
from hubqueue.sandbox.response import PLAIN, Response, as_json
from hubqueue.sandbox.routes import Entrance, Prepared, RoutedService, now_text
from hubqueue.sandbox.server import Server
from hubqueue.sandbox.service import RunDetail, RunSummary

SANDBOX = Path(__file__).resolve().parents[2] / "hubqueue" / "sandbox"
PATIENCE = 20.0


class Notes(RoutedService):
    """Accepts `{"score": number}` at /notes, with the key in its own header."""

    name, title = "notes", "Notes"
    events: Mapping[str, str] = {"noted": "metrics"}
    facts = frozenset({"noted"})
    key_headers = ("x-notes-key",)
    dialect = PLAIN

    def __init__(self) -> None:
        self.scores: list[float] = []
        super().__init__((Entrance("POST", re.compile("/notes"), "metrics", self._take_note),))

    def key_of(self, request: Request) -> str:
        return str(request.headers.get("x-notes-key", ""))

    def reset(self) -> None:
        self.scores.clear()

    def apply(self, fact: Fact) -> None:
        self.scores.append(fact["score"])

    def variables(self, url: str, key: str) -> dict[str, str]:
        return {"NOTES": url}

    def _take_note(self, request: Request, _: str) -> Prepared:
        score = request.json_object()["score"]

        def make() -> tuple[Fact, Response]:
            return {"fact": "noted", "score": score, "at": now_text()}, as_json(
                200, {"number": len(self.scores)}
            )

        return Prepared(lambda: self._keep(request, make))

    def runs(self) -> Sequence[RunSummary]:
        return [self._summary()] if self.scores else []

    def _summary(self) -> RunSummary:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        return RunSummary("notebook", "my notes", "open", at, at, len(self.scores), None, 0, 0)

    def run(self, run_id: str) -> RunDetail | None:
        return (
            RunDetail(self._summary(), {0: {"score": self.scores[0]}}, ()) if run_id == "notebook" else None
        )

    def cancel(self, run_id: str) -> bool:
        return False

    def document(self, path: str) -> Any | None:
        return {"scores": self.scores} if path == "/api/notes" else None


def post(server: Server, score: float, **headers: str) -> tuple[int, dict[str, Any]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    head = {"Content-Type": "application/json", "X-Notes-Key": "k", **named}
    asked = urllib.request.Request(f"{server.url}/notes", json.dumps({"score": score}).encode(), head)
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def read(server: Server, path: str) -> Any:
    with urllib.request.urlopen(server.url + path, timeout=PATIENCE) as response:
        return json.loads(response.read())


def test_a_custom_service_has_everything_that_the_sandbox_offers(tmp_path: Path) -> None:
    notes = Notes()
    with Server([notes], tmp_path, keys=("k",)) as server:
        assert post(server, 0.5, Idempotency_Key="a") == (200, {"number": 0})
        assert post(server, 0.5, Idempotency_Key="a") == (200, {"number": 0})
        assert post(server, 0.7, X_Notes_Key="wrong")[0] == 401
        server.fail("metrics:503:event=noted")
        assert notes.scores == [0.5]
        shown = read(server, "/api")
        run = read(server, "/api/runs/notebook")
        own = read(server, "/api/notes")

    assert [(each["service"], each["name"]) for each in shown["runs"]] == [("notes", "my notes")]
    assert shown["services"] == [{"name": "notes", "title": "Notes", "variables": {"NOTES": server.url}}]
    assert run["metrics"] == {"0": {"score": 0.5}} and own == {"scores": [0.5]}
    assert [each.with_key for each in server.requests] == [True, True, True]
    assert [each.replayed for each in server.requests] == [False, True, False]

    again = Notes()
    with Server([again], tmp_path):
        assert again.scores == [0.5]


def test_a_folder_with_facts_of_a_service_that_is_not_served_is_left_alone(tmp_path: Path) -> None:
    with Server([Notes()], tmp_path) as server:
        post(server, 0.5)

    with pytest.raises(ConfigError, match="line 2 of"):
        Server(services("hub"), tmp_path).start()


def test_an_event_that_no_service_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="noted"), Server([Notes()]) as server:
        server.fail("503:event=notde")


def test_two_services_cannot_keep_the_same_fact(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the same fact"):
        Archive(tmp_path, [Notes(), Notes()])


def test_a_server_without_services_serves_its_page(tmp_path: Path) -> None:
    with Server([], tmp_path) as server:
        assert read(server, "/api") == {"runs": [], "requests": [], "services": []}
        assert post(server, 1.0) == (404, {"error": "POST is not served here"})


def test_services_are_made_by_their_names() -> None:
    assert [each.name for each in services()] == ["hub", "platform", "mlflow", "huggingface"]
    assert [each.name for each in services("platform")] == ["platform"]
    with pytest.raises(ConfigError, match="unknown type"):
        services("nothing")


def test_a_service_is_loaded_only_when_it_is_asked_for() -> None:
    code = (
        "import sys, hubqueue.sandbox.server; from hubqueue.destinations.services import services; services('hub');"
        "print([name for name in sys.modules if name == 'hubqueue.destinations.platform.sandbox'])"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"


def test_the_server_names_no_protocol() -> None:
    words = re.compile(r"ultralytics|webhook|/v1/|modelId|runId|gcsPath|hubs?\b|platform", re.IGNORECASE)
    files = [
        path for path in SANDBOX.iterdir() if path.suffix in (".py", ".html") and path.name != "__init__.py"
    ]

    found = [
        (path.name, number, line.strip())
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line.replace("hubqueue", ""))
    ]

    assert len(files) > 10 and found == []
