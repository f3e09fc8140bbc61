from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aig import schedules
from aig.schedules import format_name, parse

ALL = [
    "base",
    "tuned",
    "linear",
    "power:2",
    "power:4",
    "power:0.5",
    "step:0.6",
    "constant:0.5",
    "join:base|0.3|power:2|0.8|tuned",
]
unit = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("text", ALL)
@given(u=unit)
def test_weights_lie_in_the_unit_interval(text, u):
    assert 0 <= parse(text)(u) <= 1


@pytest.mark.parametrize("text", ALL)
@given(u=unit, v=unit)
def test_every_named_schedule_never_falls(text, u, v):
    schedule = parse(text)
    assert schedule(min(u, v)) <= schedule(max(u, v))


@given(u=unit, p=st.floats(1, 20), q=st.floats(1, 20))
def test_a_larger_power_stays_longer_with_the_base(u, p, q):
    assert schedules.power(max(p, q))(u) <= schedules.power(min(p, q))(u)


@given(u=unit)
def test_linear_is_power_one_and_constants_are_base_and_tuned_at_their_ends(u):
    assert parse("linear")(u) == parse("power:1")(u) == u
    assert parse("constant:0")(u) == parse("base")(u) == 0
    assert parse("constant:1")(u) == parse("tuned")(u) == parse("step:0")(u) == 1


@given(u=unit, boundary=st.floats(0.01, 0.99))
def test_join_is_its_first_part_before_the_boundary_and_its_second_from_there(u, boundary):
    joined = schedules.join([parse("linear"), parse("power:3")], [boundary])
    assert joined(u) == (u if u < boundary else u**3)


@pytest.mark.parametrize("text", [*ALL, "power:2@time", "join:base|0.3|tuned@time"])
def test_a_schedules_name_parses_back_to_the_same_curve(text):
    first, second = parse(text), parse(format_name(parse(text)))
    assert first.domain == second.domain
    assert all(first(i / 50) == second(i / 50) for i in range(50))


def test_step_domain_counts_steps_and_time_domain_reads_the_clock():
    times = [999, 899, 500, 100]
    assert schedules.weights(parse("linear"), times, 1000) == [0, 0.25, 0.5, 0.75]
    assert schedules.weights(parse("linear@time"), times, 1000) == pytest.approx([0.001, 0.101, 0.5, 0.9])


def test_published_schedules_never_reach_one_before_the_end():
    weights = schedules.weights(parse("power:2"), list(range(25)), 1000)
    assert weights[0] == 0 and weights[-1] == (24 / 25) ** 2


@given(w=st.floats(0, 1))
def test_mix_is_the_convex_combination(w):
    base, tuned = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    assert torch.allclose(schedules.mix(base, tuned, w), (1 - w) * base + w * tuned, atol=1e-12)


def test_mix_at_zero_and_one_is_exact():
    base, tuned = torch.randn(1000), torch.randn(1000) * 1e6
    assert torch.equal(schedules.mix(base, tuned, 0.0), base)
    assert torch.equal(schedules.mix(base, tuned, 1.0), tuned)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("powr:2", "did you mean 'power'"),
        ("power", "needs a number"),
        ("power:x", "needs a number"),
        ("power:-1", "positive"),
        ("power:inf", "finite"),
        ("power:nan", "positive"),
        ("step:1.5", r"in \[0, 1\]"),
        ("constant:-0.1", r"in \[0, 1\]"),
        ("linear:3", "not known"),
        ("linear@clock", "domain"),
        ("join:base|0.8|linear|0.2|tuned", "increasing"),
        ("", "not known"),
    ],
)
def test_a_bad_schedule_is_refused_with_its_reason(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_progress_outside_the_unit_interval_is_refused():
    for u in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="outside"):
            parse("linear")(u)
