from __future__ import annotations

import math
import pickle
import sys
from dataclasses import replace

import numpy as np
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
    "piecewise:0=0|0.3=0.1|0.7=0.8|1=1",
    "join:base|0.3|piecewise:0=0|1=1|0.8|tuned",
    "ramp:0.5,3",
    "ramp:0,0.5",
    "constant:2",
    "2*power:2",
    "3*piecewise:0=0|0.7=0.8|1=1",
    "join:base|0.3|2*linear|0.8|ramp:0.2,8",
    "coin:power:2",
]
unit = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("text", ALL)
@given(u=unit)
def test_weights_lie_between_0_and_64_and_those_of_a_coin_up_to_1(text, u):
    assert 0 <= parse(text)(u) <= (1 if text.startswith("coin:") else 64)


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


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 50])
@pytest.mark.parametrize("start", [0, 0.25, 0.5, 0.9])
def test_a_ramp_is_0_until_its_start_and_reaches_its_top_at_the_last_step_of_any_number(start, steps):
    weights = schedules.weights(parse(f"ramp:{start},3"), range(steps), 1.0)
    last = (steps - 1) / steps
    line = [3 * (i / steps - start) / (last - start) if i / steps > start else 0 for i in range(steps - 1)]
    assert weights == pytest.approx([*line, 3])
    assert weights[-1] == 3


def test_a_ramp_in_the_time_domain_reaches_its_top_at_the_last_time():
    weights = schedules.weights(parse("ramp:0.5,4@time"), [999, 749, 499, 249], 1000)
    assert weights == pytest.approx([0, 0, 4 * (0.501 - 0.5) / (0.751 - 0.5), 4])


def test_a_factor_multiplies_every_weight_and_a_coin_keeps_them():
    assert [parse("3*power:2")(i / 9) for i in range(9)] == [3 * (i / 9) ** 2 for i in range(9)]
    assert [parse("coin:power:2")(i / 9) for i in range(9)] == [(i / 9) ** 2 for i in range(9)]
    assert parse("coin:power:2").coin
    assert not parse("power:2").coin


@pytest.mark.parametrize(("length", "top"), [(0.068, 3.68), (0.25, 1), (0.5, 0.5), (0.001, 64)])
def test_a_fitted_ramp_reaches_a_quarter_over_the_path_length_to_three_digits_at_most_64(length, top):
    schedule = schedules.fitted("mine=ramp:0.5,auto@time", length)
    assert (schedule.name, schedule.domain, schedule.label) == (f"ramp:0.5,{top:g}", "time", "mine")
    assert schedules.fitted("power:2", length).name == "power:2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ramp:0.5", "as in ramp:0.5,3, or ramp:0.5,auto"),
        ("ramp:1,3", r"start = 1.0 must be in \[0, 1\)"),
        ("ramp:0.5,65", r"top = 65.0 must be in \[0, 64\]"),
        ("ramp:0.5,much", "needs two numbers after the colon"),
        ("constant:65", r"in \[0, 64\]"),
        ("constant:nan", r"in \[0, 64\]"),
        ("much*linear", "needs a number before the \\*"),
        ("0*linear", r"in \(0, 64\]"),
        ("2*coin:linear", "is a coin, which does not go into a factor"),
        ("join:base|0.3|coin:linear", "is a coin, which does not go into join"),
        ("join:base|0.3|ramp:0.5,auto", "still to be found, which does not go into join"),
        ("coin:ramp:0.5,auto", "still to be found, which does not go into a coin"),
    ],
)
def test_a_text_with_an_impossible_weight_is_refused_with_the_reason(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_weight_beyond_what_is_allowed_is_refused_where_it_is_read():
    with pytest.raises(ValueError, match=r"gave weight 66.0 at u = 0.5; weights lie in \[0, 64\]"):
        parse("22*constant:3")(0.5)
    with pytest.raises(ValueError, match=r"weights lie in \[0, 1\]"):
        parse("coin:2*linear")(0.75)
    with pytest.raises(ValueError, match="follows from the adapter's path length"):
        parse("ramp:0.5,auto")(0.75)
    with pytest.raises(ValueError, match="path length = 0 must be positive"):
        schedules.fitted("ramp:0.5,auto", 0)


# u rises strictly, by no less than a slope in float64 can bear; w is anything in [0, 64].
places = st.integers(0, 10**9).map(lambda i: i / 10**9)
knots = st.lists(st.tuples(places, st.floats(0, 64)), min_size=2, max_size=6, unique_by=lambda k: k[0]).map(sorted)


@given(knots=knots, u=unit)
def test_a_piecewise_curve_is_linear_interpolation_and_passes_its_knots_exactly(knots, u):
    curve = schedules.piecewise(knots)
    places, levels = zip(*knots, strict=True)
    assert curve(u) == pytest.approx(np.interp(u, places, levels), abs=1e-9)
    assert [curve(place) for place in places] == list(levels)


@given(knots=knots, u=unit)
def test_a_piecewise_curve_stays_within_the_knots_beside_it(knots, u):
    beside = [w for v, w in knots if v <= u][-1:] + [w for v, w in knots if v >= u][:1]
    assert min(beside) <= schedules.piecewise(knots)(u) <= max(beside)


texts = st.one_of(
    st.floats(1e-3, 1e3).map(schedules.power),
    st.floats(0, 1).map(schedules.step),
    st.floats(0, 64).map(schedules.constant),
    st.tuples(st.floats(0, 0.99), st.floats(0, 64)).map(lambda pair: schedules.ramp(*pair)),
    st.tuples(st.floats(1e-3, 64), st.floats(1e-3, 1e3)).map(lambda p: schedules.times(p[0], schedules.power(p[1]))),
    knots.map(schedules.piecewise),
    st.tuples(knots, st.floats(0.01, 0.99)).map(
        lambda pair: schedules.join([schedules.piecewise(pair[0]), schedules.power(3)], [pair[1]])
    ),
)


@given(schedule=texts, u=unit)
def test_a_name_says_every_digit_of_its_curve(schedule, u):
    again = parse(format_name(schedule))
    assert format_name(again) == format_name(schedule)
    assert again(u) == schedule(u)


@given(schedule=texts, domain=st.sampled_from(schedules.DOMAINS), label=st.sampled_from([None, "mine-1"]), u=unit)
def test_a_file_gives_back_the_schedule_its_domain_and_its_label(tmp_path_factory, schedule, domain, label, u):
    path = tmp_path_factory.getbasetemp() / "curves@16" / "schedule.json"
    schedules.write(path, replace(schedules.in_domain(schedule, domain), label=label), {"why": "a test"})
    again = parse(f"file:{path}")
    assert (again.domain, again.label, format_name(again)) == (
        domain,
        label,
        format_name(replace(schedule, domain=domain)),
    )
    assert again(u) == schedule(u)
    assert parse(f"file:{path}@time").domain == "time"


def test_a_file_may_list_knots(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine", "knots": [[0, 0], [0.5, 1], [1, 0.4]], "domain": "time"}')
    found = parse(f"file:{path}")
    assert (format_name(found), found.label) == ("piecewise:0=0|0.5=1|1=0.4@time", "mine")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[1, 2]", "it holds a list"),
        ("{}", "needs one of 'schedule' and 'knots'"),
        ('{"schedule": "linear", "knots": [[0, 0], [1, 1]]}', "needs one of"),
        ('{"knotts": [[0, 0], [1, 1]]}', "did you mean 'knots'"),
        ('{"schedule": "powr:2"}', "did you mean 'power'"),
        ('{"schedule": "file:other.json"}', "give the text of a curve"),
        ('{"schedule": 2}', "give the text of a curve"),
        ('{"knots": [[0, 0]]}', "at least two"),
        ('{"knots": [[0, 0], [0.5, 1], [0.5, 0]]}', "u must increase"),
        ('{"knots": [[0, 0], [0.7, 1], [0.5, 0]]}', "u must increase"),
        ('{"knots": [[0, 0], [1, 65]]}', r"knot \(1, 65\): u must be in \[0, 1\], w in \[0, 64\]"),
        ('{"knots": [[-0.1, 0], [1, 1]]}', r"u must be in \[0, 1\], w in \[0, 64\]"),
        ('{"knots": [[0, NaN], [1, 1]]}', r"u must be in \[0, 1\], w in \[0, 64\]"),
        ('{"knots": [[0, "a"], [1, 1]]}', "a list of pairs of numbers"),
        ('{"knots": [[0, true], [1, 1]]}', "a list of pairs of numbers"),
        ('{"schedule": "linear", "domain": "clock"}', "not one of step, time"),
        ('{"schedule": "linear", "name": "my curve"}', "without spaces"),
    ],
)
def test_a_malformed_file_is_named_with_what_is_wrong_in_it(content, said, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"wrong\.json.*{said}"):
        parse(f"file:{path}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read \(No such file"):
        parse(f"file:{tmp_path}/nowhere.json")


def test_a_label_names_a_schedule_and_does_not_change_it():
    labelled = parse("mine-1=power:2@time")
    assert (labelled.label, format_name(labelled), parse("power:2@time").label) == ("mine-1", "power:2@time", None)


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
        ("constant:-0.1", r"in \[0, 64\]"),
        ("linear:3", "not known"),
        ("linear@clock", "domain"),
        ("join:base|0.8|linear|0.2|tuned", "increasing"),
        ("piecewise:0=0", "at least two"),
        ("piecewise:0=0|0.5", "numbers U=W"),
        ("piecewise:0=0|0.6=1|0.4=1", "u must increase"),
        ("piecewise:0=0|1=65", r"w in \[0, 64\]"),
        ("picewise:0=0|1=1", "did you mean 'piecewise'"),
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


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, `own_curves`, and one within a package."""
    (tmp_path / "own_curves.py").write_text(
        "import numpy, torch\n"
        "half = 0.5\n"
        "def square(u): return u**2\n"
        "def as_numpy(u): return numpy.float32(u)\n"
        "def as_tensor(u): return torch.tensor(u)\n"
        "def level(u): return 0.25\n"
        "def high(u): return 65 if u > 0.99 else u\n"
        "def endless(u): return float('nan') if u == 0.5 else u\n"
        "def broken(u): return 1 / (u - 0.25)\n"
        "def textual(u): return 'much'\n"
        "def missing(u): return None\n"
    )
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "curves.py").write_text(
        "class Square:\n    def __call__(self, u): return u**2\nsquare = Square()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("own_curves", "own_package", "own_package.curves"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("text", ["own_curves:square", "own_package.curves:square", "mine=own_curves:square"])
def test_an_imported_function_is_the_schedule_of_the_same_formula(text):
    curve, square = parse(text), parse("power:2")
    assert [curve(i / 1000) for i in range(1001)] == [square(i / 1000) for i in range(1001)]
    assert format_name(curve) == text.removeprefix("mine=")
    assert curve.label == ("mine" if text.startswith("mine") else None)
    assert format_name(parse(f"{text}@time")) == text.removeprefix("mine=") + "@time"
    assert schedules.level(curve) is None
    assert format_name(pickle.loads(pickle.dumps(curve))) == format_name(curve)  # it travels by its name


@pytest.mark.usefixtures("own")
def test_an_imported_function_may_return_any_number_and_a_constant_one_has_a_level():
    assert [parse(f"own_curves:{name}")(0.5) for name in ("as_numpy", "as_tensor")] == [0.5, 0.5]
    assert type(parse("own_curves:as_numpy")(0.5)) is float
    assert schedules.level(parse("own_curves:level")) == 0.25


@pytest.mark.usefixtures("own")
def test_an_imported_function_may_be_part_of_a_join():
    joined = parse("join:base|0.5|own_curves:square")
    assert (joined(0.4), joined(0.6)) == (0, 0.6**2)
    assert format_name(parse(format_name(joined))) == format_name(joined)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_curves:high", r"own_curves:high.*weight 65\.0 at u = 0\.99.*give a function"),
        ("own_curves:endless", r"weight nan at u = 0\.5.*give a function"),
        ("own_curves:broken", r"failed at u = 0.*give a function"),
        ("own_curves:textual", "could not convert.*give a function"),
        ("own_curves:missing", "NoneType.*give a function"),
        ("own_curves:half", "own_curves:half' is a float: give the package.module:callable"),
        ("own_curves:nothing", "cannot be imported .*nothing.*give the package.module:callable"),
        ("no_such_package.curves:square", "cannot be imported .*no_such_package.*known: base, "),
        ("powr:two", "cannot be imported .*known: base, "),
        ("linear:square", "not known"),
    ],
)
def test_a_function_that_is_no_schedule_is_refused_with_its_reason_and_the_fix(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_bare_function_is_named_by_where_it_is_defined():
    curve = schedules.as_schedule(math.sqrt)
    assert (curve.name, curve(0.25), curve.digest) == ("math:sqrt", 0.5, parse("math:sqrt").digest)
    with pytest.raises(ValueError, match="give a function"):
        schedules.as_schedule(lambda u: 65 * u)


def test_the_digest_of_a_function_is_that_of_its_values():
    square = schedules.from_callable(lambda u: u**2)
    assert square.digest == schedules.from_callable(lambda u: u * u).digest
    assert square.digest != schedules.from_callable(lambda u: u**2.001).digest
    # A change at one step of one grid counts.
    assert square.digest != schedules.from_callable(lambda u: 0.0 if u == 29 / 30 else u**2).digest
    joined = [schedules.join([parse("base"), schedules.from_callable(f)], [0.5]) for f in (math.sin, math.sqrt)]
    assert None is not joined[0].digest != joined[1].digest
    assert parse("power:2").digest is schedules.join([parse("base"), parse("tuned")], [0.5]).digest is None
