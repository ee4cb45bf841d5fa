"""Every part of the torture, one after the other: `make torture`, with TORTURE=full for the published figures."""

from __future__ import annotations

import sys

from torture import damage, failing, kills, many, peers, power, rules, secrecy, simulation

PARTS = (rules, simulation, kills, power, failing, many, peers, damage, secrecy)


def main() -> int:
    """Run them all; 1 when the sentence of any is false."""
    return max(part.main([]) for part in PARTS)


if __name__ == "__main__":
    sys.exit(main())
