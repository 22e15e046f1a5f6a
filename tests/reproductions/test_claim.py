"""Criteria on made-up measurements: a verdict is a pure function of them."""

import math

import pytest

from prefopt.errors import PrefoptError
from prefopt.reproductions import Demand, load_all
from prefopt.reproductions.measure import common_range, least_lead, mean_lead

START = {"kl": 0.0, "reward": 0.5}


def points(*pairs):
    return [{"kl": kl, "reward": reward} for kl, reward in pairs]


def test_every_seed_must_keep_the_bounds():
    demand = Demand("x", lambda m: m["x"], least=0.1)
    assert demand.check([{"x": 0.1}, {"x": 0.5}]).met
    missed = demand.check([{"x": 0.09}, {"x": 0.5}])
    assert not missed.met and missed.seeds == (0.09, 0.5)
    assert missed.mean == pytest.approx(0.295) and missed.se == pytest.approx(0.205)
    assert demand.criterion == "x: at least 0.1 on every seed"


def test_the_mean_over_seeds():
    demand = Demand("x", lambda m: m["x"], least=0.44, most=0.56, over="mean")
    assert demand.check([{"x": 0.3}, {"x": 0.7}]).met
    assert not demand.check([{"x": 0.3}, {"x": 0.5}]).met
    assert not demand.check([{"x": 0.7}, {"x": 0.6}]).met
    assert demand.criterion == "x: at least 0.44 and at most 0.56 in the mean over seeds"


def test_what_could_not_be_measured_is_not_met():
    for over in ("each", "mean"):
        check = Demand("x", lambda m: m["x"], most=1.0, over=over).check([{"x": 0.5}, {"x": math.nan}])
        assert not check.met and check.to_json()["seeds"] == [0.5, None]
    assert not Demand("x", lambda m: m["x"], most=1.0).check([]).met


def test_a_demand_that_cannot_fail_is_refused():
    with pytest.raises(PrefoptError, match="can never fail"):
        Demand("x", lambda m: 0.0)
    with pytest.raises(PrefoptError, match="never hold"):
        Demand("x", lambda m: 0.0, least=1, most=0)


def test_leads_are_taken_at_equal_kl():
    """Two straight lines in sqrt(KL): 0.5 + 0.1 x against 0.5 + 0.05 x, common range x in [1, 2]."""
    a = points((1, 0.6), (4, 0.7), (9, 0.8))
    b = points((0.25, 0.525), (4, 0.6))
    assert common_range(a, b) == (1, 4)
    assert mean_lead(a, b, START) == pytest.approx(0.075)
    assert least_lead(a, b, START) == pytest.approx(0.05)
    assert mean_lead(b, a, START) == pytest.approx(-0.075)
    assert least_lead(b, a, START) == pytest.approx(-0.1)


def test_ranges_that_do_not_meet_cannot_be_compared():
    a, b = points((1, 0.6), (2, 0.7)), points((3, 0.6), (4, 0.7))
    assert common_range(a, b) is None
    assert math.isnan(mean_lead(a, b, START)) and math.isnan(least_lead(a, b, START))


def test_noise_below_zero_is_no_distance():
    """k1 of an unchanged model may come out slightly negative."""
    a, b = points((-0.01, 0.5), (1, 0.7)), points((0.0, 0.5), (1, 0.6))
    assert mean_lead(a, b, START) == pytest.approx(0.05)


def frontiers(dpo, sft):
    return {"start": START, "dpo": points(*dpo), "sft": points(*sft)}


GOOD = frontiers([(0.2, 0.6), (2, 0.75), (9, 0.9)], [(0.1, 0.51), (1, 0.55), (4, 0.58)])


@pytest.mark.parametrize(
    ("seeds", "verdict", "unmet"),
    [
        ([GOOD] * 3, "holds", []),
        # better on average and at best, but below where KL is small
        ([GOOD, frontiers([(0.2, 0.52), (2, 0.75), (9, 0.9)], [(0.1, 0.56), (1, 0.57), (4, 0.58)])], "fails", [1]),
        # above everywhere, but by too little
        ([GOOD, frontiers([(0.2, 0.53), (2, 0.58), (9, 0.62)], [(0.1, 0.51), (1, 0.55), (4, 0.58)])], "fails", [0, 2]),
        # the other way round
        ([frontiers([(0.1, 0.51), (1, 0.55), (4, 0.58)], [(0.2, 0.6), (2, 0.75), (9, 0.9)])], "fails", [0, 1, 2]),
    ],
)
def test_the_criterion_of_dpo(seeds, verdict, unmet):
    judgement = load_all()["dpo"].judge(seeds)
    assert judgement.verdict == verdict
    assert [i for i, check in enumerate(judgement.checks) if not check.met] == unmet


@pytest.mark.parametrize("slug", sorted(load_all()))
def test_every_reproduction_says_what_it_does(slug):
    r = load_all()[slug]
    assert r.slug == slug and r.claim.endswith(".") and r.setting.endswith(".") and r.demands and r.seeds >= 3
    with pytest.raises(PrefoptError, match="at least one seed"):
        r.judge([])
