"""Every aggregate against numbers computed by hand, by simulation, or by other code."""

import math

import numpy as np
import pytest

from prefopt.errors import PrefoptError
from prefopt.evaluation.divergence import kl_k1, kl_k3
from prefopt.evaluation.estimate import (
    NOT_FINITE,
    bootstrap_interval,
    mean,
    paired_difference,
    wilson_interval,
)
from prefopt.evaluation.frontier import area, envelope, reward_at
from prefopt.evaluation.preference import (
    accuracy,
    calibration_error,
    expected_calibration_error,
    likelihood_calibration_error,
    margin,
)
from prefopt.evaluation.winrate import NO_JUDGMENT, win_rate


def test_mean_by_hand():
    e = mean([1.0, 2.0, 3.0, 6.0])
    assert e.value == 3
    assert e.n == 4
    assert not e.dropped
    assert e.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert e.interval == pytest.approx((3 - 1.959964 * e.standard_error, 3 + 1.959964 * e.standard_error))


def test_missing_values_are_dropped_and_counted():
    e = mean([1.0, math.nan, 3.0, math.inf])
    assert (e.value, e.n, e.dropped) == (2.0, 2, {NOT_FINITE: 2})


@pytest.mark.parametrize(("values", "value"), [([], math.nan), ([5.0], 5.0)])
def test_too_few_values_have_no_error(values, value):
    e = mean(values)
    assert e.n == len(values)
    assert math.isnan(e.standard_error)
    assert e.value == pytest.approx(value, nan_ok=True)
    assert e.to_json()["se"] is None
    assert e.to_json()["ci"] is None


def test_samples_of_one_prompt_count_once():
    e = mean([0.0, 2.0, 5.0, 7.0], groups=[4, 4, 9, 9])
    assert e.n == 2
    assert e.value == 3.5
    assert e.standard_error == pytest.approx(np.std([1, 6], ddof=1) / math.sqrt(2))
    with pytest.raises(PrefoptError, match="one group per value"):
        mean([1.0, 2.0], groups=[1])


def test_paired_difference_removes_what_prompts_share():
    noise = np.random.default_rng(0).normal(size=200) * 10
    e = paired_difference(noise + 1.0, noise)
    assert e.value == pytest.approx(1)
    assert e.standard_error < 1e-6
    lone = paired_difference([1.0, math.nan], [0.5, 0.0])
    assert lone.n == 1
    assert lone.dropped == {NOT_FINITE: 1}
    assert math.isnan(lone.interval[0])
    with pytest.raises(PrefoptError, match="equal numbers"):
        paired_difference([1.0], [])


def test_intervals_cover_about_95_percent():
    draw = np.random.default_rng(1)
    samples = draw.exponential(size=(300, 60))
    normal = np.mean([e.interval[0] <= 1 <= e.interval[1] for e in map(mean, samples)])
    boot = np.mean([low <= 1 <= high for low, high in (bootstrap_interval(s, 300) for s in samples)])
    assert 0.89 < normal < 0.98
    assert 0.89 < boot < 0.98


def test_wilson_against_published_values():
    # Newcombe (1998), table I: 81 of 263 and 0 of 20
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    with pytest.raises(PrefoptError):
        wilson_interval(1.5, 3)


def test_accuracy_counts_ties_half():
    e = accuracy([1.0, 2.0, 3.0, math.nan], [0.0, 2.0, 4.0, 0.0])
    assert e.value == 0.5
    assert e.n == 3
    assert e.dropped == {NOT_FINITE: 1}
    assert 0 < e.interval[0] < 0.5 < e.interval[1] < 1
    assert margin([1.0, 2.0], [0.0, 4.0]).value == -0.5
    assert accuracy([], []).n == 0
    with pytest.raises(PrefoptError, match="pairs"):
        accuracy([1.0], [1.0, 2.0])


def test_calibration_error_by_hand():
    # bins of width 1/2, right-closed: 0.5 belongs to the first, 0.6 and 1.0 to the second
    e = expected_calibration_error([0.5, 0.6, 1.0], [1, 1, 0], bins=2)
    assert e == pytest.approx((abs(1 - 0.5) + abs(1 - 1.6)) / 3)
    for wrong in ([1.2], [-0.1]):
        with pytest.raises(PrefoptError, match=r"\[0, 1\]"):
            expected_calibration_error(wrong, [1])
    with pytest.raises(PrefoptError, match="bin"):
        expected_calibration_error([0.5], [1], bins=0)


def test_a_calibrated_simulator_has_no_calibration_error():
    draw = np.random.default_rng(2)
    p = draw.uniform(0.5, 1.0, 20_000)
    first_is_better = draw.uniform(size=p.size) < p
    gap = np.log(p / (1 - p)) * np.where(first_is_better, 1, -1)
    assert calibration_error(gap, np.zeros_like(gap)).value <= 0.01
    overconfident = calibration_error(5 * gap, np.zeros_like(gap))
    assert overconfident.value > 0.1
    assert overconfident.interval[0] > 0.1
    assert math.isnan(calibration_error([], []).value)


def test_kl_estimators_are_unbiased_on_a_known_distribution():
    policy, reference = np.array([0.6, 0.3, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = float((policy * np.log(policy / reference)).sum())
    tokens = np.random.default_rng(3).choice(3, p=policy, size=(20_000, 4))
    p, r = np.log(policy)[tokens], np.log(reference)[tokens]
    for estimator in (kl_k1, kl_k3):
        e = estimator(p, r)
        assert abs(e.value - 4 * exact) < 4 * e.standard_error
        assert e.n == 20_000
    assert kl_k3(p, r).standard_error < kl_k1(p, r).standard_error


def test_kl_by_hand_and_ragged():
    p, r = [[-1.0, -2.0], [-0.5]], [[-1.5, -1.0], [-0.5]]
    assert kl_k1(p, r).value == pytest.approx((0.5 - 1.0 + 0.0) / 2)
    k3 = (math.exp(-0.5) - 1 + 0.5) + (math.exp(1.0) - 1 - 1.0)
    assert kl_k3(p, r).value == pytest.approx(k3 / 2)
    with pytest.raises(PrefoptError, match="response 0"):
        kl_k1([[-1.0]], [[-1.0, -2.0]])


def test_win_rate_of_a_judge_that_follows_the_position():
    w = win_rate([1.0] * 30, [0.0] * 30)
    assert w.rate.value == 0.5
    assert (w.wins, w.ties, w.losses) == (0, 30, 0)
    assert w.position_bias.value == 1


def test_win_rate_by_hand():
    w = win_rate([1.0, 1.0, 0.0, 0.9, math.nan], [1.0, 0.0, 0.0, 0.7, 1.0])
    assert w.rate.value == pytest.approx((1 + 0.5 + 0 + 0.8) / 4)
    assert (w.wins, w.ties, w.losses) == (2, 1, 1)
    assert w.rate.dropped == {NO_JUDGMENT: 1}
    low, high = w.rate.interval
    assert 0 <= low < w.rate.value < high <= 1
    assert w.to_json()["wins"] == 2


def test_unanimous_win_rate_is_not_certain():
    w = win_rate([1.0] * 20, [1.0] * 20)
    assert w.rate.value == 1
    assert w.rate.interval == pytest.approx((1 - 0.1611, 1.0), abs=1e-4)
    assert win_rate([], []).rate.n == 0


def test_win_rate_refuses_what_is_no_probability():
    with pytest.raises(PrefoptError, match="judgment 1"):
        win_rate([0.5, 2.0], [0.5, 0.5])
    with pytest.raises(PrefoptError, match="both orders"):
        win_rate([0.5], [])


def test_win_rate_interval_resamples_prompts_not_samples():
    outcomes = np.repeat([1.0, 0.0] * 10, 50)
    by_prompt = win_rate(outcomes, outcomes, groups=np.repeat(np.arange(20), 50)).rate
    assert by_prompt.n == 20
    assert by_prompt.interval[1] - by_prompt.interval[0] > 0.3


def test_frontier():
    points = [(4.0, 2.0), (1.0, 1.0), (2.0, 0.5), (9.0, 2.5), (0.0, 0.0)]
    assert envelope(points) == [(0.0, 0.0), (1.0, 1.0), (4.0, 2.0), (9.0, 2.5)]
    assert reward_at(points, 2.25) == pytest.approx(1.5)
    assert area(points, 0.0, 1.0) == pytest.approx(0.5)
    for kl in (-1.0, 10.0):
        with pytest.raises(PrefoptError, match="extrapolated"):
            reward_at(points, kl)
    with pytest.raises(PrefoptError, match="extrapolated"):
        reward_at([], 1.0)


def test_the_calibration_of_likelihoods_by_bins_left_closed_and_ties_wrong():
    """Bins: 0.05 right; 0.12 and 0.15 (a tie: wrong) together; 1.0 right in the last."""
    better = np.log([0.05, 0.12, 0.15, 1.0])
    worse = np.log([0.01, 0.01, 0.15, 0.5])
    want = (abs(1 - 0.05) + abs((1 - 0.12) + (0 - 0.15)) + abs(1 - 1.0)) / 4
    assert likelihood_calibration_error(better, worse) == pytest.approx(want)
    for wrong in ([0.1], [np.nan], []):
        with pytest.raises(PrefoptError, match="at most 0"):
            likelihood_calibration_error(wrong, wrong)
