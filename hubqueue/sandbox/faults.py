"""The language of faults: which requests go wrong, how, how often.

    [KIND:]WHAT[:PROBABILITY][:option=value]...        503:0.3    metrics:429:retry-after=5

Promises: a rule is either valid or refused with its problems and a suggestion. The random generator is
seeded, so that a single client sees the same faults each time. Refuses to guess what a misspelt rule meant. The
services define the events. Pure except for its counters: no socket, no clock.
"""

from __future__ import annotations

import difflib
import random
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubqueue.domain.errors import ConfigError

KINDS = ("registration", "metrics", "ckpt", "heartbeat", "event", "completion", "auth", "read", "any")

# Each fault, and whether the request is carried out nevertheless, unless the rule has `store`.
BEHAVIOURS: dict[str, bool] = {
    "cut-head": False,
    "cut-body": False,
    "reset": False,
    "silence": False,
    "html": False,
    "empty": False,
    "null": False,
    "redirect": False,
    "close": False,
    "slow-read": True,
    "drip": True,
    "gzip": True,
    "lost-ack": True,
}
_TIMED = ("silence", "slow-read", "drip")
_WITH_EPOCHS = ("metrics", "ckpt", "any")
_OPTION = re.compile(r"[a-z][a-z_-]*=")


@dataclass(frozen=True, slots=True)
class Rule:
    """One parsed rule. `status` is set when `what` is an HTTP status, `stores` when the request still counts.

    `bytes`, `epoch`, `event` and `path` narrow the match (bodies above that size, requests with that epoch,
    that event, a path that begins so); `after` skips the first matching requests, `times` is how many of the next ones
    the rule is for. `seconds` is the length of a silence, or the pause of slow-read and drip.
    """

    text: str
    kind: str
    what: str
    status: int | None
    stores: bool
    probability: float = 1.0
    retry_after: str | None = None
    reset: str | None = None
    ratelimit: str | None = None
    times: int | None = None
    after: int = 0
    epoch: int | None = None
    event: str | None = None
    path: str | None = None
    bytes: int | None = None
    to: str | None = None
    seconds: float | None = None


class Faults:
    """The rules in force. The first one that fires decides; safe to change while requests are running."""

    def __init__(
        self, rules: Iterable[str] = (), *, seed: int = 0, events: Mapping[str, str] | None = None
    ) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._rules: list[Rule] = []
        self._seen: list[int] = []
        problems: list[str] = []
        hints: list[str] = []
        for text in rules:
            try:
                self.add(text)
            except ConfigError as error:
                problems.extend(error.problems)
                hints.append(error.hint or "")
        if problems:
            raise ConfigError(tuple(problems), hint=hints[0] or None)

    def add(self, text: str) -> None:
        """Add a rule after the others. Raises `ConfigError` for an invalid rule."""
        rule = parse_rule(text, events=self._events)
        with self._lock:
            self._rules.append(rule)
            self._seen.append(0)

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()
            self._seen.clear()

    def pick(
        self,
        kind: str,
        *,
        body_bytes: int,
        path: str = "/",
        event: str | None = None,
        epochs: Sequence[int] | None = None,
    ) -> Rule | None:
        """The rule that hits this request, or None.

        Called twice for a request: before its body is read (`epochs` None: rules that name no epoch), and
        after it has been parsed (rules that name one).
        """
        with self._lock:
            for index, rule in enumerate(self._rules):
                if rule.kind not in (kind, "any") or (rule.epoch is None) != (epochs is None):
                    continue
                if rule.epoch is not None and rule.epoch not in (epochs or ()):
                    continue
                if rule.bytes is not None and body_bytes <= rule.bytes:
                    continue
                if rule.event not in (None, event) or not path.startswith(rule.path or "/"):
                    continue
                number = self._seen[index]
                self._seen[index] += 1
                if number < rule.after or (rule.times is not None and number >= rule.after + rule.times):
                    continue
                if rule.probability >= 1 or self._random.random() < rule.probability:
                    return rule
        return None

    def roll(self, first: int, last: int) -> int:
        """A random whole number from `first` to `last`, both included: where a response is cut."""
        with self._lock:
            return self._random.randint(first, max(first, last))


def parse_rule(text: str, *, events: Mapping[str, str] | None = None) -> Rule:
    """Read one rule. `events` are those that it may name, with the kind of each; None takes any name.

    Raises `ConfigError`, with a suggestion if a known word is close. It names only the first wrong word. If all words are
    right, it names every wrong option.
    """
    words, options = _split(text)
    problems: list[str] = []
    kind = words.pop(0) if words and words[0] in KINDS else "any"
    what = words.pop(0) if words else ""
    status = _status_of(what)
    if status is None and what not in BEHAVIOURS:
        # Words after an unknown word have no certain meaning: a second error about them would be a guess.
        raise _invalid(text, [_unknown_what(what, more=bool(words))])
    probability = _probability_of(words, text)
    values = _values_of(options, events, problems)
    stores = values.pop("store", BEHAVIOURS.get(what, False))
    if not problems:
        problems.extend(_mismatches(kind, what, status, values, events or {}))
        if not stores and BEHAVIOURS.get(what, False):
            problems.append(f"{what} always carries the request out: store=no is not allowed with it")
    if problems:
        raise _invalid(text, problems)
    return Rule(
        text=text, kind=kind, what=what, status=status, stores=stores, probability=probability, **values
    )


def _invalid(text: str, problems: Iterable[str]) -> ConfigError:
    return ConfigError(
        tuple(f"fault rule {text!r}: {problem}" for problem in problems),
        hint="a rule is [KIND:]WHAT[:PROBABILITY][:option=value]..., such as metrics:429:retry-after=5",
    )


def _split(text: str) -> tuple[list[str], list[str]]:
    """The words before the first option, and the options; a ':' inside an option's value stays there."""
    words: list[str] = []
    options: list[str] = []
    for part in text.strip().split(":"):
        if _OPTION.match(part):
            options.append(part)
        elif options:
            options[-1] += ":" + part
        else:
            words.append(part.strip().lower())
    return words, options


def _status_of(what: str) -> int | None:
    return int(what) if re.fullmatch(r"[2-5][0-9][0-9]", what) else None


def _unknown_what(what: str, *, more: bool) -> str:
    if not what:
        return "the fault is missing (an HTTP status, or " + ", ".join(BEHAVIOURS) + ")"
    if what.isdigit():
        return f"{what} is not an HTTP status (200 to 599)"
    # A first word that something follows may be meant as a kind; a last one can only be a behaviour.
    known = (*KINDS, *BEHAVIOURS) if more else tuple(BEHAVIOURS)
    return f"{what!r} is neither a kind nor a fault" + _nearest(what, known)


def _nearest(word: str, known: Iterable[str]) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else " (known: " + ", ".join(known) + ")"


def _probability_of(words: list[str], text: str) -> float:
    if not words:
        return 1.0
    if len(words) > 1:
        raise _invalid(text, [f"{words[1]!r} is not expected there (options are written name=value)"])
    try:
        probability = float(words[0])
    except ValueError:
        raise _invalid(text, [f"{words[0]!r} is not a probability"]) from None
    if not 0 < probability <= 1:
        raise _invalid(text, [f"the probability {words[0]} is not above 0 and at most 1"])
    return probability


def _whole(value: str) -> int:
    number = int(value)
    if number < 0:
        raise ValueError(value)
    return number


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1e9:
        raise ValueError(value)
    return number


def _yes_or_no(value: str) -> bool:
    return {"yes": True, "no": False}[value]


def _line(value: str) -> str:
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError(value)
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(value)
    return _line(value)


_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "retry-after": (_line, "seconds, or http-date, http-date+SECONDS, or any text"),
    "reset": (_line, "unix, unix+SECONDS, iso, iso+SECONDS, or any text"),
    "ratelimit": (_line, "the text of the RateLimit header"),
    "times": (_whole, "a whole number"),
    "after": (_whole, "a whole number"),
    "epoch": (_whole, "an epoch, from 0"),
    "event": (_line, "the name of an event"),
    "path": (_path, "the beginning of a path, such as /files/"),
    "bytes": (_whole, "a size in bytes"),
    "to": (_line, "a URL"),
    "seconds": (_seconds, "a number of seconds"),
    "store": (_yes_or_no, "yes or no"),
}


def _values_of(options: list[str], events: Mapping[str, str] | None, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        name = name.replace("_", "-")
        if name not in _OPTIONS:
            problems.append(f"unknown option {name!r}" + _nearest(name, _OPTIONS))
            continue
        read, meaning = _OPTIONS[name]
        try:
            values[name.replace("-", "_")] = read(value.strip())
        except (ValueError, KeyError):
            problems.append(f"{name}={value} is not {meaning}")
    if events is not None and "event" in values and values["event"] not in events:
        problems.append(f"there is no event {values['event']!r}" + _nearest(values["event"], events))
    return values


def _mismatches(
    kind: str, what: str, status: int | None, values: dict[str, Any], events: Mapping[str, str]
) -> list[str]:
    problems: list[str] = []
    for name in ("retry_after", "reset", "ratelimit"):
        if name in values and status is None:
            problems.append(f"{name.replace('_', '-')} is only allowed with an HTTP status, not with {what}")
    if "to" in values and what != "redirect" and status not in range(300, 400):
        problems.append(f"to is only allowed with redirect or a 3xx status, not with {what}")
    if "seconds" in values and what not in _TIMED:
        problems.append(f"seconds is only allowed with {', '.join(_TIMED)}, not with {what}")
    if "epoch" in values and kind not in _WITH_EPOCHS:
        problems.append(f"a {kind} request has no epoch (metrics and ckpt have one)")
    event = values.get("event", "")
    if event in events and kind not in (events[event], "any"):
        problems.append(f"{event} is a {events[event]} request, not a {kind} one")
    if "epoch" in values and what == "slow-read":
        problems.append("slow-read begins before the epoch is known")
    return problems
