"""Integration of PyTorch Lightning: `HubqueueLogger` is a logger for its `Trainer`."""

from hubqueue.integrations.lightning.logger import HubqueueLogger

__all__ = ["HubqueueLogger"]
