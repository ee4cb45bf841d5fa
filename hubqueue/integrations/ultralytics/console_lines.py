"""What the ultralytics package logs, a few lines at a time, for a hub that shows them.

Promises: it listens to the package's own logger and nothing else (standard output is not touched); a line that
cannot be saved troubles nobody; lines that wait are saved when it is closed.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime

from hubqueue.domain.redact import hide_key
from hubqueue.producer.run import Run

_LOG = logging.getLogger("hubqueue")
# As often as the package sends its own: 5 lines, or 5 seconds.
_MOST = 5
_LONGEST = 5.0
_LONGEST_LINE = 2000
_LONGEST_RECORD = 32 * 1024


class ConsoleLines(logging.Handler):
    """A handler that owes what it hears to the hub of a run. Made for one training; `close` it at its end."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.INFO)
        self._run = run
        self._lines: list[str] = []
        self._since = time.monotonic()
        self._saving = False
        self._logger = logging.getLogger("ultralytics")
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, and save those that wait when they are enough."""
        try:
            stamp = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
            # Masked before it is parted and cut: half a key is still half a key.
            for line in hide_key(_bounded(record.getMessage())).splitlines():
                if line.strip():
                    self._lines.append(f"[{stamp}] {line[:_LONGEST_LINE]}")
            if len(self._lines) >= _MOST or time.monotonic() - self._since >= _LONGEST:
                self._save()
        except Exception as error:  # a training is not told about a line that was not sent
            _LOG.debug("a line of the console is not sent: %s", error)

    def close(self) -> None:
        """Listen no more, and save what waits."""
        self._logger.removeHandler(self)
        self._save()
        super().close()

    def _save(self) -> None:
        lines, self._lines, self._since = self._lines, [], time.monotonic()
        if lines and not self._saving:
            self._saving = True
            try:
                self._run.log_console("\n".join(lines), lines=len(lines))
            finally:
                self._saving = False


def _bounded(text: str) -> str:
    """As much of a text as is searched for keys, without the word that the cut would part."""
    return text if len(text) <= _LONGEST_RECORD else text[:_LONGEST_RECORD].rpartition(" ")[0]
