"""One seed of the reproductions on ranked lists, in a few steps, and how their numbers are read."""

import math

import pytest
from matplotlib.figure import Figure

from prefopt.reproductions import curry_dpo, tree_tpo, triple_tpo
from prefopt.reproductions.small import bench_at
from prefopt.worlds.formatted import make as formatted_make
from prefopt.worlds.rated import make as rated_make


@pytest.fixture
def tiny(monkeypatch):
    for module in (formatted_make, rated_make):
        monkeypatch.setattr(module, "STEPS", 20)
        monkeypatch.setattr(module, "HELD_OUT", 8)
    for module in (triple_tpo, curry_dpo):
        monkeypatch.setattr(module, "LISTS", 12)
        monkeypatch.setattr(module, "SAMPLES", 16)


def test_a_seed_of_triple_tpo(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(triple_tpo, "TRAIN", {"steps": 2, "learning_rate": 1e-3, "batch": 4})
    few = ("dpo-0.1", "sft", "cpo-0.1", "tpo")
    monkeypatch.setattr(triple_tpo, "RUNS", {k: triple_tpo.RUNS[k] for k in few})
    found = triple_tpo.go(bench_at(tmp_path, 1))
    assert set(found) == {"start", *few, *triple_tpo.LONGER}
    assert all(math.isfinite(x) for run in found.values() for x in run.values())
    monkeypatch.setattr(triple_tpo, "NAMES", {k: v for k, v in triple_tpo.NAMES.items() if k in found})
    assert isinstance(triple_tpo.plot([found]), Figure)


def test_the_best_of_several_betas_counts():
    m = {
        "a-1": {"reward": 0.2, "length": 9.0},
        "a-2": {"reward": 0.4, "length": 7.0},
        "b": {"reward": 9.0, "length": 1.0},
    }
    assert triple_tpo.best(m, "a", "reward") == 0.4
    assert triple_tpo.best(m, "a", "length") == 9.0
    assert triple_tpo.best_length(m, "a") == 7.0


def test_a_seed_of_curry_dpo(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(curry_dpo, "STEPS", 6)
    monkeypatch.setattr(curry_dpo, "BATCH", 4)
    found = curry_dpo.go(bench_at(tmp_path, 1))
    assert set(found) == {"start", *(f"{arm}-{beta:g}" for arm in curry_dpo.NAMES for beta in curry_dpo.BETAS)}
    assert found["curry-0.1"] != found["fixed-0.1"] != found["reversed-0.1"]
    assert curry_dpo.best(found, "curry") == max(found["curry-0.1"]["reward"], found["curry-0.2"]["reward"])
    assert isinstance(curry_dpo.plot([found]), Figure)


def test_a_seed_of_tree_tpo(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_tpo, "WORLD", {"lists": 24, "heldout": 10, "demonstrations": 24, "fitted": 10})
    monkeypatch.setattr(tree_tpo, "TRAIN", tree_tpo.TRAIN | {"max_steps": 60})
    few = ("dpo-0.1", "pairwise", "lambda", "adaptive")
    monkeypatch.setattr(tree_tpo, "RUNS", {k: tree_tpo.RUNS[k] for k in few})
    found = tree_tpo.run(bench_at(tmp_path, 1))
    assert set(found) == {"start", *few, "rise"}
    assert all(math.isfinite(x) for name in ("start", *few) for x in found[name].values())
    assert found["start"]["tau"] == 0
    assert all(-1 <= found[name]["tau"] <= 1 for name in few)
    assert found["pairwise"] != found["lambda"] != found["adaptive"]
    assert isinstance(tree_tpo.plot([found]), Figure)
    assert all(math.isfinite(d.of(found)) for d in tree_tpo.REPRODUCTION.demands)


def test_kendall_counts_pairs_of_different_value():
    assert tree_tpo.kendall([3.0, 2.0, 1.0], [1.0, 0.5, 0.0]) == 1
    assert tree_tpo.kendall([1.0, 2.0, 3.0], [1.0, 0.5, 0.0]) == -1
    assert tree_tpo.kendall([3.0, 1.0, 2.0], [1.0, 0.5, 0.0]) == pytest.approx(1 / 3)
    assert tree_tpo.kendall([3.0, 9.0, 1.0], [1.0, 1.0, 0.0]) == 1  # equals are no pair
    assert tree_tpo.kendall([0.0, 0.0], [1.0, 0.0]) == 0
    m = {"dpo-0.1": {"tau": 0.2}, "dpo-0.5": {"tau": 0.7}, "dpo-1": {"tau": 0.1}, "dpo-2": {"tau": 0.3}}
    assert tree_tpo.best_dpo(m, "tau") == 0.7
