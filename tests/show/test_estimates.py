"""The one format of numbers."""

import math

import pytest

from pipelines.show import tables
from pipelines.show.estimates import Estimate, difference, interval


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(12.3456, 12.11, 12.61), "12.35 [12.11, 12.61]"),
        (Estimate(0.00123, 0.00101, 0.00149), "0.00123 [0.00101, 0.00149]"),
        (Estimate(1234.5, 1100.0, 1400.0), "1234 [1100, 1400]"),
        (Estimate(-0.001, -0.1, 0.1), "0.00 [−0.10, 0.10]"),
        (Estimate(2.0, 2.0 - 1e-15, 2.0), "2.00 [2.00, 2.00]"),
        (Estimate(0.97), "0.970"),
        (Estimate(math.nan), "–"),
    ],
)
def test_numbers_are_rounded_to_what_their_interval_supports(estimate, shown):
    assert interval(estimate) == shown


@pytest.mark.parametrize(
    ("by_seed", "shown"),
    [
        ({}, "+0.50 [+0.10, +0.90]"),
        ({3: 0.5}, "+0.50 [+0.10, +0.90]"),
        ({0: 0.4, 1: 0.6}, "+0.50 [+0.10, +0.90] (+0.40, +0.60 in training seeds 0 and 1)"),
        ({0: 0.4, 1: math.nan, 2: -0.6}, "+0.50 [+0.10, +0.90] (+0.40, −0.60 in training seeds 0 and 2)"),
        ({0: 0.4, 1: 0.5, 2: 0.6}, "+0.50 [+0.10, +0.90] (+0.40, +0.50, +0.60 in training seeds 0, 1 and 2)"),
    ],
)
def test_a_difference_has_its_sign_and_the_values_of_several_training_seeds(by_seed, shown):
    assert difference(Estimate(0.5, 0.1, 0.9), by_seed) == shown


def test_columns_are_aligned_to_the_left_where_asked_and_to_the_right_elsewhere():
    rows = [["arm", "n", "note"], ["base", "1", "x"], ["a", "10", ""]]
    assert tables.aligned(rows, left=(0, 2)).splitlines() == ["arm    n  note", "base   1  x", "a     10"]
