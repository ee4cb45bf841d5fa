"""Facts about the process of a training, its machine and its repository: `environment` of a start.

Names and units are those of ultralytics 8.4.190. Promises: no program is started, no package is loaded, no fact contains a
key. What cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from hubqueue.destinations.platform.machine import gpus, sampler
from hubqueue.destinations.platform.machine.masking import shown_command, shown_path, shown_text
from hubqueue.destinations.platform.machine.repository import repository
from hubqueue.destinations.platform.machine.versions import versions

_KAGGLE = "https://www.kaggle.com"


def environment(args: Mapping[str, object] | None = None) -> dict[str, Any]:
    """All facts of this process, now. `args` are the arguments of its training.

    `totalRamGb` and `totalDiskGb` are in GiB, as the package sends them. `command` is `sys.argv`, masked (`masking.py`).
    """
    facts: dict[str, Callable[[], object]] = {
        "hostname": socket.gethostname,
        "os": _system,
        "environment": lambda: kind_of(os.environ),
        "pythonExecutable": lambda: shown_path(sys.executable) if sys.executable else None,
        "cpuCount": lambda: os.cpu_count() or 0,
        "cpu": _processor,
        "command": lambda: shown_command(sys.argv, args),
        "totalRamGb": sampler.total_ram,
        "totalDiskGb": sampler.total_disk,
    }
    found: dict[str, Any] = {}
    for name, fact in facts.items():
        with contextlib.suppress(Exception):  # a training must not fail because of an unusual machine
            value = fact()
            found |= {} if value is None else {name: value}
    return found | repository() | gpus.hardware() | versions()


def kind_of(environ: Mapping[str, str]) -> str:
    """Where the training runs: Colab, Kaggle, Docker, or the name of the operating system."""
    if "COLAB_RELEASE_TAG" in environ or "COLAB_BACKEND_VERSION" in environ:
        return "Colab"
    if environ.get("PWD") == "/kaggle/working" and environ.get("KAGGLE_URL_BASE") == _KAGGLE:
        return "Kaggle"
    return "Docker" if os.path.exists("/.dockerenv") else platform.system()


def _system() -> str:
    if sys.platform != "linux":
        return platform.platform()
    # The same text as platform.platform(), which starts a program.
    names, library = os.uname(), ""
    with contextlib.suppress(OSError, ValueError):
        library = (os.confstr("CS_GNU_LIBC_VERSION") or "").replace(" ", "")
    return f"{names.sysname}-{names.release}-{names.machine}" + (f"-with-{library}" if library else "")


def _processor() -> str:
    """The name of the processor, without the signs for trademarks; its architecture where there is no name."""
    name = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in file)
        name = next((value for key, _, value in lines if key.strip() == "model name"), "")
    for sign in ("(R)", "(r)", "(TM)", "(tm)"):
        name = name.replace(sign, "")
    return shown_text(" ".join(name.split()) or platform.machine() or "unknown")
