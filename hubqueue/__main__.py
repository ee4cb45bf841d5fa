"""`python -m hubqueue` and the `hubqueue` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from hubqueue.cli import main as command

    command(prog_name="hubqueue")


if __name__ == "__main__":
    main()
