"""What runs say together, on made-up rows whose answers are known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefopt.errors import PrefoptError
from prefopt.studies import summary


def row(label: str = "dpo", reward: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    made = {
        "run": f"{label}-1", "label": label, "point": {"beta": 0.1}, "start": "sft", "size": None, "seed": 0,
        "central": True, "status": "finished", "reward": reward, "kl": 1.0,
    }  # fmt: skip
    return made | changes


def scored(rows: list[dict[str, Any]], start: float = 0.4) -> list[dict[str, Any]]:
    return summary.scored(rows, "reward", {"sft": {"reward": start}})


def test_percentiles_are_linear_between_order_statistics() -> None:
    found = summary.robustness([4.0, 1.0, 3.0, 2.0])
    assert found["best"] == 4.0
    assert found["percentiles"] == {"0.5": 2.5, "0.25": 1.75, "0.1": pytest.approx(1.3)}
    assert found["mean"] == 2.5 and found["std"] == pytest.approx(math.sqrt(1.25))  # divided by the run count
    assert found["curve"][0] == 1.0 and found["curve"][-1] == 4.0 and len(found["curve"]) == summary.CURVE


def test_share_near_the_best_counts_its_bound() -> None:
    found = summary.robustness([1.0, 0.9, 0.5, 0.4], thresholds=[0.1, 0.5, 0.6], top=1.5)
    assert found["within"] == {"0.1": 0.5, "0.5": 0.75, "0.6": 1.0}  # 0.9 = best - 0.1 is in
    assert found["near_top"] == {"0.1": 0.0, "0.5": 0.25, "0.6": 0.5}


def test_one_run_and_none() -> None:
    found = summary.robustness([0.7])
    assert set(found["percentiles"].values()) == {0.7} and found["std"] == 0.0
    with pytest.raises(PrefoptError, match="no runs"):
        summary.robustness([])


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_runs_that_did_not_finish_count_as_the_worst_seen(status: str) -> None:
    rows = [row(reward=0.9), row(reward=0.2), row(reward=None, status=status)]
    assert [r["score"] for r in scored(rows)] == [0.9, 0.2, 0.2]
    assert scored([row(reward=0.9), row(reward=None, status=status)], start=0.4)[1]["score"] == 0.4
    other = [row(reward=0.1, start="base"), row(reward=0.8), row(reward=None, status=status)]
    assert scored(other)[2]["score"] == 0.4  # from the same start only
    assert scored([row(reward=0.1, size=8), row(reward=0.8), row(reward=None, status=status)])[2]["score"] == 0.4
    found = summary.methods(scored(rows), ("sft", None), [0.5], [0.1])["dpo"]
    assert found["runs"] == 3 and found[status] == 1 and found["percentiles"]["0.5"] == 0.2


def test_finished_runs_without_the_score_are_refused() -> None:
    for value in (None, math.nan):
        with pytest.raises(PrefoptError, match="dpo-1 has no reward"):
            scored([row(reward=value)])


def test_seeds_are_gathered_by_setting() -> None:
    rows = scored([row(reward=0.6), row(reward=0.8, seed=1), row(reward=0.5, point={"beta": 1.0}), row(label="ipo")])
    points = summary.per_point(rows)
    assert [(p["label"], p["score"], p["seeds"]) for p in points] == [("dpo", 0.7, 2), ("dpo", 0.5, 1), ("ipo", 0.5, 1)]
    assert points[0]["score_se"] == pytest.approx(0.1)  # 0.1414 / sqrt(2)
    assert math.isnan(points[1]["score_se"])
    assert summary.methods(rows, ("sft", None), [0.5], [0.1])["dpo"]["best_point"]["point"] == {"beta": 0.1}


def test_a_failed_seed_pulls_its_setting_down_and_its_numbers_are_those_that_finished() -> None:
    rows = scored([row(reward=0.8, kl=3.0), row(reward=None, kl=None, seed=1, status="failed")])
    (point,) = summary.per_point(rows)
    assert point["score"] == pytest.approx(0.6) and point["kl"] == 3.0
    assert (point["seeds"], point["finished"]) == (2, 1)


def test_marginals_average_over_everything_else() -> None:
    grid = [(b, r, b + 10 * r) for b in (0.3, 0.1) for r in (1, 2)]
    rows = scored([row(reward=v, point={"beta": b, "train.learning_rate": r}) for b, r, v in grid], start=0.0)
    found = summary.marginals(rows)
    assert [(v["value"], v["mean"], v["runs"]) for v in found["beta"]] == [
        (0.1, pytest.approx(15.1), 2),
        (0.3, pytest.approx(15.3), 2),
    ]
    assert [(v["least"], v["most"]) for v in found["train.learning_rate"]] == [(10.1, 10.3), (20.1, 20.3)]


def test_frontier_leaves_out_what_is_beaten_and_what_failed() -> None:
    rows = scored([
        row(reward=0.5, kl=1.0), row(reward=0.4, kl=2.0), row(reward=0.7, kl=3.0), row(reward=0.45, kl=-0.1),
        row(reward=None, kl=None, status="failed"),
    ])  # fmt: skip
    assert summary.frontier(rows) == [(0.0, 0.45), (1.0, 0.5), (3.0, 0.7)]  # a sampled KL below zero is zero there


def test_scenarios_compare_one_setting_from_every_start() -> None:
    rows = scored([row(reward=0.9), row(reward=0.3, start="base"), row(reward=0.95, point={"beta": 1.0}, central=False),
                   row(label="ipo", reward=0.8)], start=0.2)  # fmt: skip
    found = summary.scenarios(rows, ["sft", "base"], None)
    assert list(found) == ["dpo"]  # ipo was not tried from both
    assert found["dpo"]["cost"] == {"base": pytest.approx(0.6)}


def test_sizes_share_the_gain_of_the_largest() -> None:
    rows = scored([row(reward=0.9), row(reward=0.6, size=512), row(reward=0.5, size=64), row(reward=0.1, size=999)])
    found = summary.sizes(rows, {"sft": 0.4}, [None, 64, 512])["dpo"]
    assert [p["size"] for p in found["sft"]] == [64, 512, None]
    assert [p["share_of_gain"] for p in found["sft"]] == pytest.approx([0.2, 0.4, 1.0])
    lost = summary.sizes(scored([row(reward=0.3), row(reward=0.2, size=64)]), {"sft": 0.4}, [None, 64])["dpo"]
    assert [p["share_of_gain"] for p in lost["sft"]] == [None, None]  # no gain to share


def test_sizes_are_told_apart_by_start_and_lines_of_one_size_are_left_out() -> None:
    rows = scored([
        row(reward=0.9), row(reward=0.6, size=64), row(reward=0.5, start="base"), row(reward=0.3, start="base", size=64),
        row(label="ipo", reward=0.7), row(reward=0.8, start="other"),
    ])  # fmt: skip
    found = summary.sizes(rows, {"sft": 0.4, "base": 0.2, "other": None}, [None, 64])
    assert {label: list(starts) for label, starts in found.items()} == {"dpo": ["sft", "base"]}
    assert [p["share_of_gain"] for p in found["dpo"]["base"]] == pytest.approx([1 / 3, 1.0])


def test_order_of_rows_changes_nothing() -> None:
    rows = scored([row(reward=r, seed=i, label=m) for i, r in enumerate((0.3, 0.9, 0.5)) for m in ("dpo", "ipo")])
    forth, back = (summary.methods(r, ("sft", None), [0.5, 0.1], [0.1]) for r in (rows, rows[::-1]))
    for label in ("dpo", "ipo"):
        assert forth[label]["curve"] == back[label]["curve"] and forth[label]["frontier"] == back[label]["frontier"]
