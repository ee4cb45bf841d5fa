"""The results, as a table on the terminal, and with `--write` in docs/performance.md and docs/performance.svg."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.timing import shown

_BEGIN, _END = "<!-- results: written by python -m benchmarks --write -->", "<!-- end of the results -->"
_NEW = f"""# Performance

Measured by `make bench`; look at the ratios, each taken within one run.

{_BEGIN}
{_END}
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One target: the floor, hubqueue's result, their ratio, and whether the target is reached."""

    what: str
    floor: str
    ours: str
    ratio: str
    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """One contender at the log call. Times in seconds; `times` is the ratio to the floor; `failed` is why there is no result."""

    who: str
    durable: bool
    on_disk: str
    p50: float | None = None
    p99: float | None = None
    times: float | None = None
    syncs: float | None = None
    kept: str = "–"
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The results of a row."""

    lines: list[Line]
    standings: list[Standing] = field(default_factory=list)


def terminal(lines: Sequence[Line]) -> str:
    """The lines of a row for the terminal: the verdict first."""
    blocks = []
    for line in lines:
        verdict = "reached" if line.met else "MISSED"
        blocks.append(
            f"{verdict:8} {line.what}\n         floor {line.floor} | hubqueue {line.ours} | {line.ratio} | target {line.target}"
        )
    return "\n".join(blocks)


def tables(lines: Sequence[Line], standings: Sequence[Standing]) -> str:
    """The tables as Markdown."""
    rows = [
        (line.what, line.floor, line.ours, line.ratio, line.target, "yes" if line.met else "**no**")
        for line in lines
    ]
    text = _table(("what", "floor", "hubqueue", "ratio", "target", "reached"), rows)
    if standings:
        text += "\n\n" + _table(
            (
                "log call, 12 scalars",
                "p50",
                "p99",
                "times the floor",
                "syncs a call",
                "after kill -9",
                "on disk when it returns",
            ),
            [_standing(each) for each in standings],
        )
    return text


def write(
    folder: Path, machine: Mapping[str, str], lines: Sequence[Line], standings: Sequence[Standing]
) -> Path:
    """Write the results between the two markers of performance.md; text outside of them stays. Draw the plot."""
    path = folder / "performance.md"
    text = path.read_text(encoding="utf-8") if path.exists() else _NEW
    if _BEGIN not in text or _END not in text:
        text = f"{text.rstrip()}\n\n{_BEGIN}\n{_END}\n"
    facts = _table(("", ""), list(machine.items()))
    plot = "\n\n![The durable log call beside its peers](performance.svg)" if standings else ""
    results = f"{_BEGIN}\n\n{facts}\n\n{tables(lines, standings)}{plot}\n\n{_END}"
    before, after = text.split(_BEGIN)[0], text.split(_END, 1)[1]
    path.write_text(before + results + after, encoding="utf-8")
    if standings:
        draw(folder / "performance.svg", standings)
    return path


def draw(path: Path, standings: Sequence[Standing]) -> None:
    """One bar per contender on a logarithmic scale: p50, with a whisker to p99; two colours, for durable or not."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hubqueue"  # makes the file reproducible
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    ran = [each for each in standings if each.p50 is not None and each.p99 is not None]
    ran.sort(key=lambda each: (not each.durable, each.p50 or 0.0), reverse=True)
    colours = {True: "#2166ac", False: "#c9a227"}
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(ran) + 1.6), layout="constrained")
    for row, each in enumerate(ran):
        p50, p99 = (each.p50 or 0.0) * 1e6, (each.p99 or 0.0) * 1e6
        axes.barh(row, p50, color=colours[each.durable], height=0.62)
        axes.plot([p50, p99], [row, row], color="#333333", linewidth=1.2)
        axes.plot([p99], [row], color="#333333", marker="|", markersize=9)
        axes.annotate(
            f" {shown(p50 / 1e6)} / {shown(p99 / 1e6)}",
            (p99, row),
            va="center",
            fontsize=8,
            xytext=(4, 0),
            textcoords="offset points",
        )
    axes.set_xscale("log")
    axes.set_xlim(left=10)
    axes.set_xlim(right=max((each.p99 or 0.0) for each in ran) * 1e6 * 6)
    axes.set_yticks(range(len(ran)), [each.who for each in ran])
    axes.set_xlabel("one log call of 12 scalars, µs: p50 (bar), p99 (whisker)")
    axes.spines[["top", "right"]].set_visible(False)
    legend = {"on disk and synced when the call returns": True, "a power cut takes it": False}
    axes.legend(
        handles=[Patch(color=colours[kind], label=word) for word, kind in legend.items()],
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _standing(each: Standing) -> tuple[str, ...]:
    if each.failed is not None or each.p50 is None or each.p99 is None or each.times is None:
        return (each.who, "–", "–", "–", "–", "–", f"did not run: {each.failed}")
    syncs = "not counted" if each.syncs is None else f"{each.syncs:.3g}"
    return (each.who, shown(each.p50), shown(each.p99), f"{each.times:.2f}x", syncs, each.kept, each.on_disk)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(re.sub(r"\s*\|\s*", " / ", cell) for cell in line) + " |" for line in lines
    )
