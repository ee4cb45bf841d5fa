"""Lines of a training's output are masked before they are split and cut."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from stage import platform_environ

from hubqueue.integrations.ultralytics.console_lines import ConsoleLines
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.run import start_run

KEY = "Vx3-qL8w_Tn5bZk2Jr7+uE9p=Cs6mAd1Yf0"


def test_a_key_is_masked_wherever_a_line_is_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in platform_environ(home, "http://127.0.0.1:9", HUBQUEUE_KEY_OTHER=KEY).items():
        monkeypatch.setenv(name, value)
    run = start_run("yolo26n.pt", worker="none", strict=True)
    lines, logger = ConsoleLines(run), logging.getLogger("ultralytics")
    logger.setLevel(logging.INFO)

    logger.info("%s %s", "x" * 1980, KEY)  # the cut at 2000 characters falls inside the key
    logger.info("%s %s", "y" * 32_750, KEY)  # and so does the end of the searched text
    logger.info("first %s", KEY[:20])  # in two chunks
    logger.info("then %s", KEY[20:])
    logger.info("api_key=SECRETZZZ and so on")
    lines.close()

    with open_outbox(home) as outbox:
        payloads = [outbox.stats.payload(row["id"]) or "{}" for row in outbox.stats.entries(limit=20)]
    content = "".join(json.loads(each).get("data", {}).get("content", "") for each in payloads)
    assert "first ***" in content
    assert "then ***" in content
    assert not any(KEY[at : at + 8] in content for at in range(len(KEY) - 7))
    assert "SECRETZZZ" not in content
