"""Checkpoints that Lightning writes on another thread (`AsyncCheckpointIO`): each is copied when its file is there.

Promises: no copy of a file that is being written, and no removal of one that is being copied. A `CheckpointIO` that writes on the
thread of the training is left as it is. Strategies that write folders (sharded checkpoints) do not use it.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any


class CheckpointWrites:
    """Watches the `CheckpointIO` of a trainer: with one that writes on another thread, a copy is made when the file is there.

    The file is not removed while it is copied. A `CheckpointIO` that writes on the thread of the training is left as it is.
    """

    def __init__(self, io: Any) -> None:
        self.io, inner = io, io
        while getattr(inner, "checkpoint_io", None) is not None:
            inner = inner.checkpoint_io
        self._changed = threading.Condition()
        # By path: how many writes have not ended, the copies to make at their ends, and the files that are copied now.
        self._open: Counter[str] = Counter()
        self._due: dict[str, deque[Callable[[], object]]] = {}
        self._copied: Counter[str] = Counter()
        if inner is not io:
            inner.save_checkpoint = partial(self._write, inner.save_checkpoint)
            io.save_checkpoint = partial(self._submit, io.save_checkpoint)
            io.remove_checkpoint = partial(self._remove, io.remove_checkpoint)

    def defers(self, path: str, copy: Callable[[], object]) -> bool:
        """Whether `copy` is called when the write of this file ends; if none is under way, it is not."""
        with self._changed:
            if self._open[path] > 0:
                self._due.setdefault(path, deque()).append(copy)
                return True
            return False

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for all writes and their copies."""
        with self._changed:
            self._changed.wait_for(lambda: not (+self._open or self._copied), timeout)

    def _submit(self, save: Callable[..., Any], checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self._open[str(path)] += 1
        return save(checkpoint, path, *args, **kwargs)

    def _write(self, save: Callable[..., Any], checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        name, is_written = str(path), False
        try:
            result = save(checkpoint, path, *args, **kwargs)
            is_written = True
            return result
        finally:
            with self._changed:
                due = self._due.get(name)
                copy = due.popleft() if due else None
                if not due:
                    self._due.pop(name, None)
                self._open[name] -= 1
                self._copied[name] += 1
            if is_written and copy is not None:
                copy()
            with self._changed:
                self._copied[name] -= 1
                self._open, self._copied = +self._open, +self._copied  # without those that are 0
                self._changed.notify_all()

    def _remove(self, remove: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._copied[str(path)] <= 0)
        return remove(path, *args, **kwargs)
