"""A progress bar of the bytes that a detached worker has sent, with the time left. Only on a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn, Self, TextIO

from tqdm import tqdm


class UploadBar:
    """One bar for one upload. Silent where `stream` is not a terminal."""

    def __init__(self, stream: TextIO, size: int) -> None:
        self._bar: tqdm[NoReturn] | None = None
        if stream.isatty():
            self._bar = tqdm(
                total=size, desc="uploading", unit="B", unit_scale=True, unit_divisor=1024, file=stream
            )

    def show(self, sent: int) -> None:
        """So many bytes have left; fewer than before when the upload began anew."""
        if self._bar is not None:
            self._bar.n = min(sent, int(self._bar.total or 0))
            self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
