"""Evidence for `on_disk` in `peers.py`: syncs counted by strace, and the calls found after a kill -9."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.contender import Contender
from benchmarks.peers import Known

_CALLS = 50
_SYNC = re.compile(r"^\d+\s+(\d+\.\d+) .*(?:fsync|fdatasync|sync_file_range|msync|syncfs)[( ]")
# The second half of a call that strace printed in two lines.
_RESUMED = "resumed>"


def syncs_per_call(name: str, folder: Path) -> float | None:
    """Syncs per call of all its processes between the begin and the end of a block; None without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    trace = folder / "trace.txt"
    traced = "trace=fsync,fdatasync,sync_file_range,msync,syncfs"
    under = (strace, "-f", "-ttt", "-qq", "-e", traced, "-e", "signal=none", "-o", str(trace))
    with Contender(name, folder, under=under) as contender:
        contender.call(10)
        block = contender.call(_CALLS)
    lines = trace.read_text(errors="replace").splitlines()
    moments = [float(found[1]) for line in lines if _RESUMED not in line and (found := _SYNC.match(line))]
    return sum(block.began <= moment <= block.ended for moment in moments) / _CALLS


def kept_after_kill(name: str, folder: Path) -> str:
    """The number of calls found after all its processes were killed immediately after the last call."""
    with Contender(name, folder) as contender:
        calls = len(contender.call(5 * _CALLS).seconds)
        contender.kill()
    return f"{Known.ALL[name].kept(folder)} of {calls}"
