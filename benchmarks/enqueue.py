"""The durable log call: 12 scalars from a training process, compared with a raw insert and with the peers.

Every contender is a separate process. They alternate, block by block, so that other load on the machine affects all.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.contender import Contender, ContenderFailedError
from benchmarks.context import Context, version
from benchmarks.evidence import kept_after_kill, syncs_per_call
from benchmarks.peers import Known
from benchmarks.report import Found, Line, Standing
from benchmarks.timing import Rounds, of_rounds, ratio, shown

_WARM = 200


def measure(context: Context) -> Found:
    rounds, calls = (8, 100) if context.quick else (24, 160)
    measured: dict[str, list[list[float]]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        running = []
        for name in (Known.FLOOR, Known.OURS, *Known.PEERS):
            try:
                contender = stack.enter_context(Contender(name, context.new("enqueue")))
                contender.call(_WARM)
                running.append(contender)
            except ContenderFailedError as error:
                failed[name] = str(error)
        for turn in range(rounds):
            for contender in running if turn % 2 else reversed(running):
                measured.setdefault(contender.name, []).append(contender.call(calls).seconds)
                contender.settle()
    standings = [
        _standing(name, measured.get(name), measured[Known.FLOOR], failed, context)
        for name in Known.ALL
        if name in measured or name in failed
    ]
    return Found([*_lines(measured)], standings)


def _lines(measured: dict[str, list[list[float]]]) -> list[Line]:
    floor, ours = measured[Known.FLOOR], measured[Known.OURS]
    p50, p99 = ratio(ours, floor), ratio(ours, floor, 0.99)
    what = "durable `log_metrics`, 12 scalars"
    lines = [
        Line(
            what,
            _words(floor),
            _words(ours),
            f"{p50:.2f}x / {p99:.2f}x",
            "≤ 1.3x / 3x the floor",
            p50 <= 1.3 and p99 <= 3,
        )
    ]
    rival = measured.get("neptune-scale")
    if rival:
        p50, p99 = ratio(ours, rival), ratio(ours, rival, 0.99)
        lines.append(
            Line(
                what,
                f"neptune-scale: {_words(rival)}",
                _words(ours),
                f"{p50:.2f}x / {p99:.2f}x",
                "faster than neptune-scale",
                p50 < 1 and p99 < 1,
            )
        )
    return lines


def _standing(
    name: str, rounds: Rounds | None, floor: Rounds, failed: dict[str, str], context: Context
) -> Standing:
    kind = Known.ALL[name]
    of_version = version(kind.package) if name != Known.OURS else ""
    who = name.replace(kind.package, f"{kind.package} {of_version}") if of_version else name
    if rounds is None:
        return Standing(who, kind.durable, kind.on_disk, failed=failed[name])
    return Standing(
        who,
        kind.durable,
        kind.on_disk,
        p50=of_rounds(rounds, 0.5),
        p99=of_rounds(rounds, 0.99),
        times=ratio(rounds, floor),
        syncs=syncs_per_call(name, context.new("syncs")),
        kept=kept_after_kill(name, context.new("killed")),
    )


def _words(rounds: Rounds) -> str:
    return f"{shown(of_rounds(rounds, 0.5))} / {shown(of_rounds(rounds, 0.99))}"
