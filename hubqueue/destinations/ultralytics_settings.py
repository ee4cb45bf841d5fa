"""The key that the ultralytics package keeps in its own settings: the last one that is tried.

After a login there (`yolo login`, `yolo settings api_key=…`) no second login is needed here. The settings are only read,
never written; if they cannot be read there is no key.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hubqueue.config.filesystem.ownership import read_small

# The settings were YAML until ultralytics 8.2.80 and are JSON since.
_YAML_KEY = re.compile(r"^api_key:[ \t]*['\"]?([^'\"\s#]+)", re.MULTILINE)
PLATFORM_KEY = "ul_"
"""Both hubs share one setting. Platform's keys begin with this prefix, HUB's never do."""


def borrowed_key(environ: Mapping[str, str], *, of_platform: bool) -> str:
    """The key for Platform, or for a HUB; empty if there is none."""
    folder = _folder(*(environ.get(name) for name in ("HOME", "YOLO_CONFIG_DIR", "XDG_CONFIG_HOME")))
    for name, read in (("settings.json", _from_json), ("settings.yaml", _from_yaml)):
        path = folder / name
        try:
            key = read(read_small(path).decode("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if key and key.startswith(PLATFORM_KEY) == of_platform:
            return key
    return ""


@cache  # called for each request
def _folder(own: str | None, named: str | None, config: str | None) -> Path:
    """The folder with the settings of ultralytics 8.2 to 8.4, by the environment variables that they use."""
    home = Path(own or os.path.expanduser("~"))
    if named:
        return Path(os.path.expanduser(named)) / "Ultralytics"
    if sys.platform == "win32":
        return home / "AppData" / "Roaming" / "Ultralytics"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "Ultralytics"
    return Path(config or home / ".config") / "Ultralytics"


def _from_json(text: str) -> str:
    settings = json.loads(text)
    key = settings.get("api_key") if isinstance(settings, dict) else None
    return key.strip() if isinstance(key, str) else ""


def _from_yaml(text: str) -> str:
    found = _YAML_KEY.search(text)
    return found[1] if found else ""
