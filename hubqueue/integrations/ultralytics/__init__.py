"""Integration of the ultralytics package: `attach(model)` adds callbacks to its trainings."""

from hubqueue.integrations.ultralytics.attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
