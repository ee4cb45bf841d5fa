"""The only compiled operator of torchvision that a training uses, in Python: the CUDA build needs CUDA's libraries.

Call `define()` before any import of torchvision. The operator is the plain greedy non-maximum suppression.
"""

from __future__ import annotations

import importlib
from typing import Any

_KEPT: list[Any] = []  # the definitions disappear when the library object is deleted


def define() -> None:
    """Make torchvision importable, and its `ops.nms` work, where the compiled part cannot be loaded."""
    torch = importlib.import_module("torch")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", lambda *given: _suppress(torch, *given), "CPU")
        _KEPT.append(library)
        importlib.import_module("torchvision")
        importlib.import_module("torchvision.extension").__dict__["_has_ops"] = lambda: True


def _suppress(torch: Any, boxes: Any, scores: Any, limit: float) -> Any:
    order, kept = scores.argsort(descending=True), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        low = torch.maximum(boxes[first, :2], boxes[order, :2])
        high = torch.minimum(boxes[first, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        order = order[shared / (areas[first] + areas[order] - shared) <= limit]
    return torch.stack(kept) if kept else order
