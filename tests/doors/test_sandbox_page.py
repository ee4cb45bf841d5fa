"""The page of the sandbox in a real browser: what it shows, and that received data never runs as code."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from hubqueue.sandbox import Sandbox

PATIENCE = 120.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EVIL = "<img src=x onerror=\"document.title='taken over'\">"
# What a browser logs about a script that failed, or that the page's policy has blocked.
TROUBLE = re.compile(r"Uncaught|Refused to|violates the following", re.IGNORECASE)

pytestmark = pytest.mark.slow
Dump = Callable[[str], str]


@pytest.fixture
def dump(hub: Sandbox, tmp_path: Path) -> Dump:
    """The document at a path, as the browser has it after five seconds of virtual time."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed here (looked for {', '.join(BROWSERS)})")

    def dumped(path: str) -> str:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
        options += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
        shown = subprocess.run(
            [browser, *options, hub.url + path],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        assert not TROUBLE.search(shown.stderr), shown.stderr
        return shown.stdout

    return dumped


def post(hub: Sandbox, path: str, body: object) -> dict[str, str]:
    head = {"Content-Type": "application/json", "Authorization": "Bearer key-of-the-tests"}
    request = urllib.request.Request(hub.url + path, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return dict(json.loads(response.read()).get("data", {}))


def model(hub: Sandbox, name: str, epochs: int) -> str:
    config = {"epochs": epochs}
    model_id = post(hub, "/v1/models", {"meta": {"name": name}, "config": config})["id"]
    values = {"train/box_loss": 1.5, "train/cls_loss": 0.5, "metrics/mAP50(B)": 0.25, name: 1.0}
    texts = {
        str(epoch): json.dumps({**values, "train/box_loss": 1.5 / (epoch + 1)}) for epoch in range(epochs)
    }
    post(hub, f"/v1/models/{model_id}", {"metrics": texts, "type": "metrics"})
    return model_id


def test_an_empty_sandbox_shows_the_next_step(hub: Sandbox, dump: Dump) -> None:
    shown = dump("/")

    assert "No run has arrived yet" in shown
    assert f"export ULTRALYTICS_HUB_API={hub.url} HUB_API_KEY=sandbox-key" in shown
    assert f"export ULTRALYTICS_PLATFORM_URL={hub.url} ULTRALYTICS_API_KEY=sandbox-key" in shown


def test_a_run_has_a_page_with_the_curves_of_its_metrics(hub: Sandbox, dump: Dump) -> None:
    model_id = model(hub, "yolov8n.pt", 200)
    hub.fail("metrics:503")
    with pytest.raises(urllib.error.HTTPError):
        post(hub, f"/v1/models/{model_id}", {"metrics": {}})

    shown = dump(f"/#/runs/{model_id}")

    curves = re.findall(r'<path class="curve k\d" d="(M[^"]+)"', shown)
    assert "yolov8n.pt" in shown and "200 of 200 epochs" in shown
    assert {path.count("L") for path in curves} >= {199}
    for name in ("box_loss", "cls_loss", "mAP50(B)", "metrics:503"):
        assert name in shown


def test_received_data_is_shown_as_text_and_never_runs(hub: Sandbox, dump: Dump) -> None:
    model_id = model(hub, EVIL, 3)

    for shown in (dump("/"), dump(f"/#/runs/{model_id}")):
        text = html.escape(EVIL, quote=False)
        assert text in shown and "<img" not in shown
        assert "<title>taken over</title>" not in shown


def test_the_newest_run_is_the_first(hub: Sandbox, dump: Dump) -> None:
    for name in ("first.pt", "second.pt"):
        model(hub, name, 2)

    shown = dump("/")

    assert shown.index("second.pt") < shown.index("first.pt")
