"""The language of faults: what a rule means, which requests it hits, how a misspelt rule is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox import parse_rule
from hubqueue.sandbox.faults import BEHAVIOURS, KINDS, Faults


def test_a_bare_status_with_a_probability_is_for_every_kind() -> None:
    rule = parse_rule("503:0.3")

    assert (rule.kind, rule.status, rule.probability, rule.stores) == ("any", 503, 0.3, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metrics:429:retry-after=5", {"kind": "metrics", "status": 429, "retry_after": "5"}),
        ("ckpt:cut-body:times=1", {"kind": "ckpt", "what": "cut-body", "times": 1}),
        ("metrics:400:epoch=7", {"kind": "metrics", "status": 400, "epoch": 7}),
        ("ckpt:413:bytes=1000000", {"kind": "ckpt", "status": 413, "bytes": 1_000_000}),
        ("any:silence:seconds=5", {"kind": "any", "what": "silence", "seconds": 5.0}),
        ("auth:401", {"kind": "auth", "status": 401}),
        ("heartbeat:null:after=2:times=1", {"kind": "heartbeat", "after": 2, "times": 1}),
        ("503:reset=iso+30:ratelimit=limit=10, remaining=0", {"ratelimit": "limit=10, remaining=0"}),
        ("close:store=yes", {"what": "close", "stores": True}),
        ("lost-ack:event=checkpoint_saved", {"kind": "any", "event": "checkpoint_saved"}),
        ("ckpt:403:path=/storage/", {"kind": "ckpt", "path": "/storage/"}),
        (" Metrics:503 ", {"kind": "metrics", "status": 503}),
    ],
)
def test_a_rule_means_what_it_says(text: str, expected: dict[str, object]) -> None:
    rule = parse_rule(text)

    assert {name: getattr(rule, name) for name in expected} == expected


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "http-date+9", "soon"])
def test_a_colon_inside_a_value_belongs_to_the_value(value: str) -> None:
    rule = parse_rule(f"429:retry-after={value}:times=2")

    assert (rule.retry_after, rule.times) == (value, 2)


def test_a_redirect_keeps_its_whole_address() -> None:
    rule = parse_rule("metrics:redirect:to=http://127.0.0.1:80/x?a=b")

    assert rule.to == "http://127.0.0.1:80/x?a=b"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", BEHAVIOURS)
def test_every_behaviour_is_allowed_with_every_kind(kind: str, what: str) -> None:
    rule = parse_rule(f"{kind}:{what}")

    assert (rule.kind, rule.what, rule.stores) == (kind, what, BEHAVIOURS[what])


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("metrix:503", "metrics"),
        ("slience", "silence"),
        ("ckpt:cutbody", "cut-body"),
        ("429:retryafter=5", "retry-after"),
        ("429:tmies=5", "times"),
        ("503:event=epoch_begin", "epoch_end"),
    ],
)
def test_a_misspelt_rule_is_refused_with_the_nearest_word(text: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=suggestion) as caught:
        parse_rule(text)

    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "metrics",
        "metrics:",
        "99",
        "600",
        "503:0",
        "503:1.5",
        "503:nan",
        "503:often",
        "503:0.3:0.4",
        "503:times=-1",
        "503:times=x",
        "503:seconds=5",
        "silence:retry-after=5",
        "silence:seconds=inf",
        "silence:seconds=-1",
        "503:to=http://localhost/",
        "heartbeat:503:epoch=3",
        "slow-read:epoch=3",
        "drip:store=no",
        "503:path=storage",
        "ckpt:503:event=epoch_end",
        "503:store=maybe",
        "429:retry-after=",
        "429:retry-after=5\r\nX-Other: 1",
    ],
)
def test_a_meaningless_rule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_rule(text)


@pytest.mark.parametrize(
    "text",
    ["metrix:503", "metrix:503:0.3:times=x", "slience:often", "503:often:times=x", "503:0.3:0.4:tmies=1"],
)
def test_after_a_wrong_word_nothing_is_guessed(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rule(text)

    assert len(caught.value.problems) == 1


def test_every_problem_of_every_rule_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Faults(["503:tmies=1:after=x", "404", "slience"])

    assert len(caught.value.problems) == 3


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_configuration_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ConfigError as error:
        assert error.problems
    else:
        assert rule.kind in KINDS and (rule.what in BEHAVIOURS or rule.status)


def test_a_server_without_events_takes_any_name_of_one() -> None:
    assert Faults(["503:event=whatever"]).pick("event", body_bytes=0, event="whatever") is not None


def test_a_rule_is_only_for_its_kind() -> None:
    faults = Faults(["metrics:503"])

    assert faults.pick("ckpt", body_bytes=0) is None
    assert faults.pick("metrics", body_bytes=0) is not None


def test_after_and_times_count_matching_requests() -> None:
    faults = Faults(["metrics:503:after=1:times=2"])

    hits = [(faults.pick("ckpt", body_bytes=0), faults.pick("metrics", body_bytes=0)) for _ in range(5)]

    assert [hit is not None for _, hit in hits] == [False, True, True, False, False]
    assert all(other is None for other, _ in hits)


def test_a_rule_for_an_epoch_is_evaluated_only_when_the_epochs_are_known() -> None:
    faults = Faults(["metrics:400:epoch=7"])

    assert faults.pick("metrics", body_bytes=10) is None
    assert faults.pick("metrics", body_bytes=10, epochs=(6, 8)) is None
    assert faults.pick("metrics", body_bytes=10, epochs=(6, 7, 8)) is not None


def test_a_rule_for_an_event_or_a_path_leaves_others_alone() -> None:
    faults = Faults(["429:event=epoch_end", "503:path=/storage/"])

    picked = [
        faults.pick("metrics", body_bytes=0, path="/api/webhooks/training/metrics", event="epoch_end"),
        faults.pick("metrics", body_bytes=0, path="/v1/models/x"),
        faults.pick("ckpt", body_bytes=0, path="/storage/x"),
    ]

    assert [rule and rule.status for rule in picked] == [429, None, 503]


def test_a_size_rule_leaves_smaller_bodies_alone() -> None:
    faults = Faults(["ckpt:413:bytes=100"])

    assert faults.pick("ckpt", body_bytes=100) is None
    assert faults.pick("ckpt", body_bytes=101) is not None


def test_the_first_rule_that_fires_decides() -> None:
    faults = Faults(["metrics:503:times=1", "any:429"])

    picked = [faults.pick("metrics", body_bytes=0) for _ in range(2)]

    assert [rule.status for rule in picked if rule] == [503, 429]


def test_the_same_seed_gives_the_same_faults() -> None:
    def hits(seed: int) -> list[bool]:
        faults = Faults(["503:0.3"], seed=seed)
        return [faults.pick("read", body_bytes=0) is not None for _ in range(200)]

    first, again, other = hits(1), hits(1), hits(2)

    assert first == again != other
    assert 30 < sum(first) < 90


def test_cleared_rules_hit_nothing() -> None:
    faults = Faults(["503"])

    faults.clear()

    assert faults.pick("read", body_bytes=0) is None
