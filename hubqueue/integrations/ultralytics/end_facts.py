"""Reads the results of a finished training from a trainer of the ultralytics package (8.2 to 8.4).

Everything comes from public attributes of the trainer, and is plain JSON of bounded size. A part that a version or a task does
not have is left out.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hubqueue.domain.plain import made_plain
from hubqueue.producer.survival import logger

_LOG = logger()
# As many images as the package sends: of all that were validated, and from each end of the order.
_MOST_IMAGES, _MOST_EXTREMES = 5000, 100
_LONGEST_NAME = 128
# As many points of a curve as the package sends.
_POINTS = 101
# Bytes of JSON. What would exceed them is left out: a hub refuses the whole end of a training rather than a part of it.
_LARGEST_CALIBRATION, _LARGEST_PLOTS = 64 * 1024, 3 << 20


def results(trainer: Any) -> dict[str, object]:
    """The results of a finished training, in the form of ultralytics 8.4.190.

    `metrics` with the fitness, `bestEpoch` (0-based), `bestFitness`, `classNames`; for a detection `validation`
    (see `validation`); for a depth model its `calibration`; the curves and matrices of its `plots`, if it made some.
    """
    validator = getattr(trainer, "validator", None)
    names = getattr(validator, "names", None) or (getattr(trainer, "data", None) or {}).get("names")
    # `stopper.best_epoch` counts from 1 in the package.
    best = getattr(getattr(trainer, "stopper", None), "best_epoch", trainer.epoch + 1)
    found = {
        "metrics": {**(trainer.metrics or {}), "fitness": getattr(trainer, "fitness", None)},
        "bestEpoch": max(0, int(best) - 1),
        "bestFitness": getattr(trainer, "best_fitness", None),
        "classNames": list(names.values()) if isinstance(names, Mapping) else list(names or ()) or None,
    }
    for name, part in (("calibration", _calibration), ("validation", _validation), ("plots", _plots)):
        try:
            value = part(trainer)
            found |= {name: value} if value else {}
        except Exception as error:  # internals of another package, and optional
            _LOG.warning("the results are sent without %s: %s", name, type(error).__name__)
    return found


def validation(images: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """How each image was detected, from its `tp`, `fp`, `fn` (counts) and `f1`, by the name of its file.

    `rows` are [name, tp, fp, fn], ordered by F1 and then by file, the worst first. Of more than 5,000 images they are
    5,000 at equal distances, the first and the last among them. `extremes` are the 100 `worst` and the 100 `best`, each
    from its end. `population` is the number of all images. `name` is the part of the file's name before the first
    underscore, without its suffix, at most 128 characters.
    """
    order = sorted(images, key=lambda name: (images[name]["f1"], name))
    last = len(order) - 1
    if len(order) > _MOST_IMAGES:
        chosen = [order[round(at * last / (_MOST_IMAGES - 1))] for at in range(_MOST_IMAGES)]
    else:
        chosen = order

    def rows(files: Sequence[str]) -> list[list[object]]:
        return [[_short(file), *(int(images[file][count]) for count in ("tp", "fp", "fn"))] for file in files]

    extremes = {"worst": rows(order[:_MOST_EXTREMES]), "best": rows(order[: -_MOST_EXTREMES - 1 : -1])}
    return {"population": len(order), "sampling": "f1_rank", "rows": rows(chosen), "extremes": extremes}


def _short(file: str) -> str:
    return PurePath(file).stem.partition("_")[0][:_LONGEST_NAME]


def _validation(trainer: Any) -> object:
    if getattr(trainer.args, "task", None) != "detect":
        return None
    box = getattr(getattr(getattr(trainer, "validator", None), "metrics", None), "box", None)
    images = getattr(box, "image_metrics", None)
    return validation(images) if images else None


def _calibration(trainer: Any) -> object:
    found, cut = made_plain(getattr(trainer, "depth_calibration", None))
    if cut or len(json.dumps(found)) > _LARGEST_CALIBRATION:
        _LOG.warning("the results are sent without the calibration: it is too large")
        return None
    return found


def _plots(trainer: Any) -> list[object]:
    """The data of each type of plot: the trainer's, else the one that its validator made last."""
    validator = getattr(trainer, "validator", None)
    found: dict[str, dict[str, Any]] = {}
    made = [
        *getattr(trainer, "plots", {}).values(),
        *reversed(list(getattr(validator, "plots", {}).values())),
    ]
    for index, each in enumerate(made):
        data = each.get("data") if isinstance(each, Mapping) else None
        kind = data.get("type") if isinstance(data, Mapping) else None
        if isinstance(kind, str) and (kind not in found or index < len(getattr(trainer, "plots", {}))):
            found[kind] = dict(data)  # type: ignore[arg-type]
    curve = found.get("pr_curve")
    if curve is not None:
        classes = [int(each) for each in validator.metrics.ap_class_index]  # type: ignore[union-attr]
        if len(classes) < len(validator.names):  # type: ignore[union-attr]
            curve["classes"] = classes  # a curve is only there for a class that the validation has
    shown: list[object] = []
    left = _LARGEST_PLOTS
    for kind, data in found.items():
        plot, cut = made_plain(thinned(_lists(data)), most=2 * _LARGEST_PLOTS)
        size = len(json.dumps(plot))
        if cut or size > left:
            _LOG.warning("the results are sent without the plot %s: it is too large", kind)
        else:
            shown.append(plot)
            left -= size
    return shown


def _lists(plot: Mapping[str, Any]) -> dict[str, Any]:
    """A plot with lists in place of arrays."""
    return {name: each.tolist() if hasattr(each, "tolist") else each for name, each in plot.items()}


def thinned(plot: dict[str, Any]) -> dict[str, Any]:
    """A plot with at most 101 points at equal distances of `x`; `y` is one curve or a list of curves, interpolated."""
    x, y = plot.get("x"), plot.get("y")
    if not x or not y or len(x) <= _POINTS:
        return plot
    step = (x[-1] - x[0]) / (_POINTS - 1)
    points = [x[0] + at * step for at in range(_POINTS - 1)] + [x[-1]]
    curves = y if isinstance(y[0], list) else [y]
    drawn = [[_between(x, curve, point) for point in points] for curve in curves]
    return {**plot, "x": points, "y": drawn if isinstance(y[0], list) else drawn[0]}


def _between(x: Sequence[float], y: Sequence[float | None], point: float) -> float | None:
    right = min(max(bisect_left(x, point), 1), len(x) - 1)
    low, high = y[right - 1], y[right]
    if low is None or high is None:  # not a number
        return None
    width = x[right] - x[right - 1]
    return low + (high - low) * ((point - x[right - 1]) / width) if width else high
