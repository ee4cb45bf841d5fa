"""The short path of `hubqueue.integrations.ultralytics`, for the scripts that import it."""

from hubqueue.integrations.ultralytics import Attachment, attach

__all__ = ["Attachment", "attach"]
