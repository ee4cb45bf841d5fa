"""A folder: killed at its changes of the file system. What a worker writes of each large file is counted."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from changes import kill_at_change
from stage import environ_of
from torture.destinations.layout import Pointers, broken, there_in
from torture.destinations.tap import Seen
from torture.destinations.target import KIB, MIB, Site, Target, There, rates
from torture.destinations.training import Sizes

from hubqueue.destinations.folder.objects import FolderObjects

_WRITES = "HUBQUEUE_TORTURE_WRITES"


class FolderSite(Site):
    """One folder."""

    def __init__(self, folder: Path) -> None:
        self._path, self._writes = folder / "box", folder / "writes"
        self._pointers = Pointers()

    def environ(self, home: Path, url: str) -> dict[str, str]:
        start = "HUBQUEUE_DESTINATIONS__LAB__"
        own = {f"{start}TYPE": "folder", f"{start}PATH": str(self._path), _WRITES: str(self._writes)}
        return environ_of(home, **own, **rates("lab"))

    def look(self) -> list[str]:
        """Every manifest must be whole at any time, and no pointer may go back."""
        objects, wrong = self._objects(), []
        for name, content in objects.items():
            if name.endswith("/manifest.json"):
                wrong += broken(name, content, objects)
            wrong += self._pointers.note(name, content)
        return wrong

    def there(self, seen: Sequence[Seen]) -> There:
        found = there_in(self._objects())
        written: Counter[str] = Counter()
        for line in self._writes.read_text().splitlines() if self._writes.exists() else ():
            count, _, path = line.partition(" ")
            written[path] += int(count)
        found.sent = len(written)
        for path, count in written.items():
            whole = Path(path).with_name(Path(path).name[1:].removesuffix(".part"))
            if whole.exists() and count > whole.stat().st_size:
                found.again.append(f"{count} bytes of {whole} were written, it has {whole.stat().st_size}")
        return found

    def _objects(self) -> dict[str, bytes]:
        files = (each for each in self._path.rglob("*") if each.is_file() and each.name != ".hubqueue")
        return {each.relative_to(self._path).as_posix(): each.read_bytes() for each in files}


def _forget_parts() -> None:
    """The defect of a control: a file that is there in part is written from its beginning."""
    inner = FolderObjects._open_part

    def opened(self: FolderObjects, part: str) -> int:
        descriptor = inner(self, part)
        os.ftruncate(descriptor, 0)
        return descriptor

    FolderObjects._open_part = opened  # type: ignore[method-assign]


class Folder(Target):
    type = "folder"
    sizes = Sizes(20 * KIB, (3 * MIB, 6 * MIB), folders=True)
    points: ClassVar = {"before a change": 90, "after a change": 90, "within a large file": 8}
    defects: ClassVar = {"a file is written from its beginning": ("again", _forget_parts)}

    @contextmanager
    def site(self, folder: Path) -> Iterator[Site]:
        yield FolderSite(folder)

    def __init__(self) -> None:
        self._left = 0  # writes of large files, before a kill

    def prepare(self) -> None:
        """Count what this worker writes of each large file."""
        log = os.open(os.environ[_WRITES], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        real = os.write

        def write(descriptor: int, content: Any) -> int:
            count = real(descriptor, content)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.endswith(".part") and not path.endswith("/.hubqueue.part"):
                real(log, f"{count} {path}\n".encode())
                self._left -= 1
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return count

        os.write = write

    def arm(self, point: str, number: int) -> None:
        if point == "within a large file":
            self._left = number
            return
        kill_at_change(number, after=point == "after a change")
