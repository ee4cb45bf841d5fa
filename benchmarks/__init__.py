"""What hubqueue costs, measured beside its floor and beside its peers: `python -m benchmarks [ROW…]` (make bench)."""
