"""A progress bar for the uploads of a run, with rate and time left. Only on a terminal and in notebooks.

Promises: it never raises, and it writes only to a terminal or notebook and only during an upload.
"""

from __future__ import annotations

import sys
import time
import warnings
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TextIO

from hubqueue.config.home import Home
from hubqueue.outbox.uploads import upload_of
from hubqueue.producer.survival import logger

_LOG = logger()
_EVERY = 0.25


class UploadBar:
    """The bar of one training, with its id at each destination: pass `show` to `Run.wait`."""

    def __init__(self, home: Home, *run_ids: str | None, stream: TextIO | None = None) -> None:
        self._home, self._run_ids = home, [each for each in run_ids if each is not None]
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._next_update = 0.0
        self._silent = not self._run_ids or not _is_interactive(self._stream)

    def show(self, left: object) -> None:
        """Update the bar; `left` is falsy when everything has arrived."""
        if self._silent or (left and time.monotonic() < self._next_update):
            return
        self._next_update = time.monotonic() + _EVERY
        try:
            self._show(done=not left)
        except Exception as error:  # a bar that cannot be drawn must not disturb the training
            self._silent = True
            _LOG.debug("the progress bar cannot be shown: %s", error)

    def _show(self, *, done: bool) -> None:
        running = () if done else (upload_of(self._home, each) for each in self._run_ids)
        upload = next((each for each in running if each is not None), None)
        if upload is None:
            self._close(arrived=done)
            return
        if self._bar is None:
            self._bar = _new_bar(self._stream, upload.size, upload.sent)
        self._bar.total, self._bar.n = upload.size, upload.sent
        self._bar.refresh()

    def _close(self, *, arrived: bool) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.leave = arrived
            bar.n = bar.total if arrived else bar.n
            bar.refresh()
            bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(arrived=False)
        except Exception as trouble:
            _LOG.debug("the progress bar cannot be closed: %s", trouble)


def _is_interactive(stream: TextIO | None) -> bool:
    try:
        return "ipykernel" in sys.modules or (stream is not None and stream.isatty())
    except (OSError, ValueError):  # the stream is closed
        return False


def _new_bar(stream: TextIO, size: int, sent: int) -> Any:
    # Imported here: a training without a terminal never needs it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets gets a text bar
        loaded: Any = import_module("tqdm.auto" if "ipykernel" in sys.modules else "tqdm")
    options = {"desc": "uploading", "unit": "B", "unit_scale": True, "initial": sent}
    return loaded.tqdm(total=size, file=stream, dynamic_ncols=True, **options)
