"""`python -m hubqueue` and the `hubqueue` command."""

from __future__ import annotations

import gc

_COLLECT_EVERY = 10_000


def main() -> None:
    """Run the command line."""
    # What loading makes, stays: looking through it for garbage every 700 objects finds none, nor does it when Python ends.
    gc.set_threshold(_COLLECT_EVERY)
    from hubqueue.cli import main as command

    try:
        command(prog_name="hubqueue")
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
