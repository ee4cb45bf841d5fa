"""The load, memory and disk of this machine, if the operating system reports them without further packages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

_GIB = 1 << 30


def load() -> dict[str, Any]:
    """`cpu` and `memory` in percent, `disk` in GiB; unknown values are left out."""
    found: dict[str, Any] = {}
    if hasattr(os, "getloadavg"):
        found["cpu"] = round(min(100.0, 100.0 * os.getloadavg()[0] / (os.cpu_count() or 1)), 1)
    memory = _memory()
    if memory is not None:
        found["memory"] = memory
    try:
        usage = shutil.disk_usage("/")
    except OSError:
        return found
    disk = {"mount": "/", "used_gb": round(usage.used / _GIB, 1), "total_gb": round(usage.total / _GIB, 1)}
    return {**found, "disk": [disk]}


def _memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return round(100.0 * (1 - sizes["MemAvailable"] / sizes["MemTotal"]), 1)
    except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
        return None
