"""Processes on a file system, or a machine, that refuses some calls: `refusing.c`, loaded into them."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


def can_refuse() -> bool:
    """Whether this machine has what that needs (Linux and a C compiler)."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def refusing(folder: Path, root: Path, **refused: object) -> dict[str, str]:
    """The variables of a process that is refused something below `root`: for example `FLOCK=errno.ENOSYS`.

    The library is copied into `folder`. The names are those in the C file, without `REFUSE_`.
    """
    library = folder / "refusing.so"
    shutil.copyfile(_compiled(), library)
    given = {f"REFUSE_{name}": str(value) for name, value in refused.items()}
    return {"LD_PRELOAD": str(library), "REFUSE_ROOT": str(root), **given}


@cache
def _compiled() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hq-refusing-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library, source = folder / "refusing.so", Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library
