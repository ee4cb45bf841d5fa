"""The progress of a download or a comparison, on a terminal: bytes, rate, and the time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

# In seconds, between two repaints.
_EVERY = 0.1


class Bar:
    """One bar, from the first byte to the end. Silent if `stream` is no terminal. A context manager, which removes it."""

    def __init__(self, stream: TextIO | None, what: str) -> None:
        self._stream = None if stream is None or not stream.isatty() else stream
        self._what = what
        self._bar: tqdm[NoReturn] | None = None
        self._paint_at = 0.0

    def show(self, here: int, before: int, total: int) -> None:
        """Show that `here` of `total` bytes are done. `before` of them were here earlier: they are not in the rate."""
        now = time.monotonic()
        if self._stream is None or (now < self._paint_at and here < total):
            return
        self._paint_at = now + _EVERY
        if self._bar is None:
            from tqdm import tqdm

            options: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "leave": False}
            self._bar = tqdm(file=self._stream, total=total, desc=self._what, **options)
        self._bar.n, self._bar.initial = here, before
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
