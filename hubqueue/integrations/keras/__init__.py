"""Integration of Keras 3: `HubqueueCallback` saves the trainings of `model.fit`."""

from hubqueue.integrations.keras.callback import HubqueueCallback

__all__ = ["HubqueueCallback"]
