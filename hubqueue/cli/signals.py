"""Signals that end a command, handled on a thread.

A handler of Python's runs between two steps of the main thread, which may hold the very lock that the handler wants: an
`Event.set` in a handler stops for ever when it meets `Event.wait` there. So a handler only writes a byte.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def on_end(act: Callable[[], object]) -> None:
    """Call `act` on a thread of its own for each SIGINT and SIGTERM that comes from now on."""
    heard, tell = os.pipe()
    os.set_blocking(tell, False)

    def listen() -> None:
        while os.read(heard, 1):
            act()

    def handle(_number: int, _frame: FrameType | None) -> None:
        os.write(tell, b"!")

    threading.Thread(target=listen, name="hubqueue-signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
