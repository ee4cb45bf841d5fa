"""The ultralytics package: `attach(model)` adds the callbacks of a training."""

from hubqueue.integrations.ultralytics.attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
