"""The versions of a training's programs: sent also where facts about the machine are not."""

from __future__ import annotations

import sys

from hubqueue.__about__ import __version__


def versions() -> dict[str, str]:
    """The versions of Python, hubqueue and, where it is loaded, the ultralytics package."""
    package = sys.modules.get("ultralytics")
    version = getattr(package, "__version__", None)
    found = {"pythonVersion": sys.version.split()[0], "hubqueueVersion": __version__}
    return found | ({"ultralyticsVersion": version} if isinstance(version, str) else {})
