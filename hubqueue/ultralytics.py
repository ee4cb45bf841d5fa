"""Short import path of `hubqueue.integrations.ultralytics`."""

from hubqueue.integrations.ultralytics import Attachment, attach

__all__ = ["Attachment", "attach"]
