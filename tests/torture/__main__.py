"""All parts of the torture, in order: `make torture`, with TORTURE=full for the published figures."""

from __future__ import annotations

import sys

from torture import (
    damage,
    deliveries,
    failing,
    kills,
    many,
    ordinary,
    peers,
    power,
    rules,
    secrecy,
    simulation,
)

PARTS = (rules, simulation, kills, deliveries, ordinary, power, failing, many, peers, damage, secrecy)


def main() -> int:
    """Run all parts; 1 if the sentence of any is false."""
    return max(part.main([]) for part in PARTS)


if __name__ == "__main__":
    sys.exit(main())
