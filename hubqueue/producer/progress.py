"""A progress bar of what a worker uploads for a run, with rate and time left. On a terminal and in notebooks only.

Promises: it never raises, writes nothing where nobody looks, and nothing while nothing is uploading.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TextIO

from hubqueue.config.home import Home
from hubqueue.outbox.uploads import upload_of

_LOG = logging.getLogger("hubqueue")
_EVERY = 0.25


class UploadBar:
    """One bar for the upload of one run: give `show` to `Run.wait`."""

    def __init__(self, home: Home, run_id: str | None, *, stream: TextIO | None = None) -> None:
        self._home, self._run_id = home, run_id
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._next_look = 0.0
        self._silent = run_id is None or not _is_seen(self._stream)

    def show(self, left: object) -> None:
        """Show how far the upload is; `left` is falsy when all has arrived."""
        if self._silent or (left and time.monotonic() < self._next_look):
            return
        self._next_look = time.monotonic() + _EVERY
        try:
            self._show(done=not left)
        except Exception as error:  # a training is not told about a bar that cannot be drawn
            self._silent = True
            _LOG.debug("the progress bar cannot be shown: %s", error)

    def _show(self, *, done: bool) -> None:
        assert self._run_id is not None
        upload = None if done else upload_of(self._home, self._run_id)
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


def _is_seen(stream: TextIO | None) -> bool:
    try:
        return "ipykernel" in sys.modules or (stream is not None and stream.isatty())
    except (OSError, ValueError):  # it was closed
        return False


def _new_bar(stream: TextIO, size: int, sent: int) -> Any:
    # Loaded only now: a training that nobody watches never needs it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets gets a bar of text
        loaded: Any = import_module("tqdm.auto" if "ipykernel" in sys.modules else "tqdm")
    options = {"desc": "uploading", "unit": "B", "unit_scale": True, "initial": sent}
    return loaded.tqdm(total=size, file=stream, dynamic_ncols=True, **options)
