"""Sends the log lines of the ultralytics package, a few at a time, to a hub that shows them, and its progress.

Promises: it reads only the package's own logger, never standard output. A line that cannot be saved raises nothing.
Waiting lines are saved when it is closed. The text of the progress bar is made from the trainer's own counts: the
package's bars are only written to standard output.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import datetime

from hubqueue.domain.redact import hide_key
from hubqueue.producer.run import Run
from hubqueue.producer.survival import logger

_LOG = logger()
# As often as the package itself sends lines: after 5 lines, or 5 seconds.
_MOST = 5
_LONGEST = 5.0
# Seconds between two saves of progress without a line: each is a row in the outbox.
_BETWEEN_BARS = 15.0
_LONGEST_LINE = 2000
_LONGEST_RECORD = 32 * 1024


class ConsoleLines(logging.Handler):
    """A logging handler that saves the lines of one training to its run. `close` it at the end of the training."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.INFO)
        self._run = run
        self._lines: list[str] = []
        self._since = time.monotonic()
        self._saving = False
        self._bars: dict[str, str] = {}
        self._sent_bars: dict[str, str] = {}
        self._logger = logging.getLogger("ultralytics")
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Add the lines of a record; save all waiting lines when there are enough."""
        try:
            stamp = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
            # Mask before splitting and cutting: part of a key would not be recognized.
            for line in hide_key(_bounded(record.getMessage())).splitlines():
                if line.strip():
                    self._lines.append(f"[{stamp}] {line[:_LONGEST_LINE]}")
            if len(self._lines) >= _MOST or time.monotonic() - self._since >= _LONGEST:
                self._save()
        except Exception as error:  # a lost log line must not disturb the training
            _LOG.debug("a line of the console is not sent: %s", error)

    def show(self, bars: Mapping[str, str]) -> None:
        """Save the progress bars of this moment, by name, with the waiting lines that are old enough."""
        self._bars = dict(bars)
        waited = time.monotonic() - self._since
        if (self._lines and waited >= _LONGEST) or (bars != self._sent_bars and waited >= _BETWEEN_BARS):
            self._save()

    def close(self) -> None:
        """Remove the handler and save the waiting lines. No bar is shown after that."""
        self._logger.removeHandler(self)
        self._bars = {}
        self._save()
        super().close()

    def _save(self) -> None:
        lines, self._lines, self._since = self._lines, [], time.monotonic()
        bars = self._bars
        if (lines or bars != self._sent_bars) and not self._saving:
            self._saving = True
            try:
                self._run.log_console("\n".join(lines), lines=len(lines), progress=bars)
                self._sent_bars = bars
            finally:
                self._saving = False


def _bounded(text: str) -> str:
    """The part of a text that is searched for keys; a word at its end that would be cut is left out."""
    return text if len(text) <= _LONGEST_RECORD else text[:_LONGEST_RECORD].rpartition(" ")[0]
