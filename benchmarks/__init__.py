"""The costs of hubqueue, compared with a floor and with peers: `python -m benchmarks [ROW…]` (make bench)."""
