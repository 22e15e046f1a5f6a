"""Criteria on made-up measurements: a verdict is a pure function of them."""

import json
import math

import pytest

from prefopt.errors import PrefoptError
from prefopt.reproductions import Demand, load_all
from prefopt.reproductions.measure import common_range, least_lead, mean_lead
from prefopt.reproductions.measure_images import relabelled, win_rate

START = {"kl": 0.0, "reward": 0.5}


def points(*pairs):
    """Runs with what a plot needs, too."""
    rest = {"kl_se": 0.01, "reward_se": 0.01, "beta": 1.0, "learning_rate": 1.0}
    return [{"kl": kl, "reward": reward} | rest for kl, reward in pairs]


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


def pictures(dpo=0.8, sft=0.7, win=0.75, shuffled=0.5, accuracy=0.75):
    return {
        "base": {"reward": 0.69},
        "sft-weak": {"reward": sft, "win_rate": 0.5, "implicit_accuracy": 0.5},
        "sft-strong": {"reward": sft - 0.1, "win_rate": 0.4, "implicit_accuracy": 0.5},
        "dpo": {"reward": dpo, "win_rate": win, "implicit_accuracy": accuracy},
        "shuffled": {"reward": 0.69, "win_rate": shuffled, "implicit_accuracy": 0.5},
        "blobs": blobs(),
    }


BLOBS = {"base": 0.58, "sft-weak": 0.67, "sft-strong": 0.65, "dpo": 0.77, "small-beta": 1.05, "unshared": 0.67,
         "ai": 1.05, "noisy": 0.62, "shuffled": 0.59, "reversed": 0.57}  # fmt: skip


def blobs(run=None, **changed):
    """The made-up part in blobs, with other numbers of one run."""
    rest = {"win_rate_any_noise": 0.5, "implicit_accuracy": 0.9, "remainder": 0.0}
    wins = {"shuffled": 0.9, "reversed": 0.1}
    made = {k: rest | {"reward": x, "brightness": x, "win_rate": wins.get(k, 0.9)} for k, x in BLOBS.items()}
    return made if run is None else made | {run: made[run] | changed}


@pytest.mark.parametrize(
    ("seeds", "unmet"),
    [
        ([pictures()] * 3, []),
        ([pictures(), pictures(win=0.64)], [0]),
        ([pictures(), pictures(sft=0.78)], [1]),
        ([pictures(shuffled=0.4), pictures(shuffled=0.6)], []),
        ([pictures(shuffled=0.6), pictures(shuffled=0.6)], [2]),
        ([pictures(shuffled=0.4), pictures(shuffled=0.4)], []),
        ([pictures(accuracy=0.68), pictures(accuracy=0.73)], []),
        ([pictures(accuracy=0.68), pictures(accuracy=0.69)], [3]),
        ([pictures(), pictures() | {"blobs": blobs("sft-weak", reward=0.78)}], [4]),
        ([pictures() | {"blobs": blobs("sft-strong", reward=0.57)}], [5]),
        ([pictures() | {"blobs": blobs("dpo", win_rate=0.64)}], [6]),
        ([pictures() | {"blobs": blobs("reversed", win_rate=0.3)}], [7]),
        ([pictures() | {"blobs": blobs("reversed", win_rate_any_noise=0.43)}], [8]),
        ([pictures() | {"blobs": blobs("dpo", implicit_accuracy=0.69)}], [9]),
        ([pictures() | {"blobs": blobs("ai", reward=0.76)}], [10]),
        ([pictures() | {"blobs": blobs("noisy", reward=0.78)}], [11]),
        ([pictures() | {"blobs": blobs("unshared", reward=0.77)}], [12]),
        ([pictures() | {"blobs": blobs("small-beta", brightness=0.77)}], [13]),
    ],
)
def test_the_criterion_of_diffusion_dpo(seeds, unmet):
    judgement = load_all()["diffusion-dpo"].judge(seeds)
    assert [i for i, check in enumerate(judgement.checks) if not check.met] == unmet
    assert judgement.verdict == ("fails" if unmet else "holds")


def test_pictures_are_compared_at_equal_noise():
    assert win_rate([1.0, 0.5, 0.2, 0.7], [0.0, 0.5, 0.3, 0.1]) == 0.625


def test_shuffled_labels_are_a_fair_coins_and_leave_the_pictures(tmp_path):
    rows = [
        {"prompt": f"p{n}", "chosen": f"{n}-a.png", "rejected": f"{n}-b.png", "chosen_score": 1} for n in range(400)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = relabelled(tmp_path / "train.jsonl", tmp_path / "elsewhere" / "shuffled.jsonl", seed=1)
    made = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
    for old, new in zip(rows, made, strict=True):
        sides = {str(tmp_path.resolve() / old[side]) for side in ("chosen", "rejected")}
        assert {new["chosen"], new["rejected"]} == sides and set(new) == {"prompt", "chosen", "rejected"}
    kept = sum(new["chosen"].endswith("a.png") for new in made)
    assert 150 < kept < 250
    again = relabelled(tmp_path / "train.jsonl", tmp_path / "again.jsonl", seed=1)
    assert again.read_text() == path.read_text()


@pytest.mark.parametrize(("slug", "seeds"), [("dpo", [GOOD] * 3), ("diffusion-dpo", [pictures()] * 3)])
def test_measurements_can_be_drawn(slug, seeds, tmp_path):
    load_all()[slug].plot(seeds).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
