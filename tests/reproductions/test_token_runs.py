"""The reproductions of TDPO and of the 3D-properties: their wiring, their toy, and what their demands refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.reproductions import properties_3d, small, tdpo
from prefopt.reproductions.bench import Event
from prefopt.reproductions.small import bench_at
from prefopt.worlds import copying, language

NUMBERS = {"reward": 1.0, "covered": 0.5, "kl": 1.0, "entropy": 2.0, "seq_kl_rejected": 1.0, "chosen_change": 0.0,
           "rejected_change": 0.0}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would have been trained, by name."""
    found: dict[str, Any] = {}

    def run(bench: Any, name: str, on: Any, world: Any, method: dict[str, Any], **how: Any) -> dict[str, float]:
        found[name] = (method, how)
        bench.progress.hear(Event(bench.seed, bench.folder / name, 1.0))
        return dict(NUMBERS)

    monkeypatch.setattr(small, "run", run)
    monkeypatch.setattr(small, "measure", lambda *a, **k: dict(NUMBERS))
    for world in (language, copying):
        monkeypatch.setattr(world, "build", lambda **_: SimpleNamespace(model="m"))
    return found


def test_tdpo_runs_what_it_says(asked: dict[str, Any], tmp_path: Any) -> None:
    bench = bench_at(tmp_path)
    found = tdpo.run(bench)
    assert set(found) == {"start", *tdpo.RUNS}
    assert {k: m for k, (m, _) in asked.items()} == tdpo.RUNS
    assert all(how == {"steps": 300, "learning_rate": 2e-3, "batch": 64} for _, how in asked.values())
    assert bench.progress.done == tdpo.REPRODUCTION.steps
    tdpo.plot([found, found])


def tdpo_seed(**changed: dict[str, float]) -> dict[str, dict[str, float]]:
    made = {
        "start": {"reward": 0.0},
        "dpo": {"seq_kl_rejected": 40.0, "entropy": 0.6, "reward": 5.8},
        "tdpo2-alpha-0.2": {"seq_kl_rejected": 8.0, "entropy": 1.7, "reward": 2.6},
        "tdpo2": {"seq_kl_rejected": 2.0, "entropy": 1.9, "reward": 1.7},
    }
    return {k: v | changed.get(k.replace("-", "_").replace(".", "_"), {}) for k, v in made.items()}


@pytest.mark.parametrize(
    ("changed", "met"),
    [
        ({}, [True] * 4),
        ({"tdpo2": {"seq_kl_rejected": 14.0}}, [False, True, True, False]),
        ({"tdpo2": {"entropy": 1.0}}, [True, False, True, False]),
        ({"start": {"reward": 1.0}}, [True, True, False, True]),
        ({"tdpo2_alpha_0_2": {"entropy": 0.5}}, [True, True, True, False]),
    ],
)
def test_tdpo_demands(changed: dict[str, Any], met: list[bool]) -> None:
    judged = tdpo.REPRODUCTION.judge([tdpo_seed(**changed)] * 3)
    assert [check.met for check in judged.checks] == met


def test_3d_properties_runs_what_it_says(asked: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties_3d, "EPOCHS", 100)
    monkeypatch.setattr(properties_3d, "FIT", 200)
    bench = bench_at(tmp_path)
    found = properties_3d.run(bench)
    assert bench.progress.done == properties_3d.REPRODUCTION.steps
    assert asked["lm-flex-0.05"][0] == {"name": "3d-properties", "beta_rejected": 0.05}
    assert asked["lm-sft-0.05"][0] == {"name": "3d-properties", "beta_rejected": 0.1, "sft_gamma": 0.05}
    assert asked["lm-dpo"][0] == {"name": "dpo", "beta": 0.1}
    for name in ("toy-dpo-1", "toy-dpo-4"):
        assert found[name]["ratio_error"] < 1e-12
        assert [p["epoch"] for p in found[name]["curve"]] == [0, 50, 100]
        first, last = found[name]["curve"][0], found[name]["curve"][-1]
        assert last["log_rejected"] < first["log_rejected"]
    assert found["toy-dpo-1"]["curve"][-1]["chosen"] > found["toy-dpo-1"]["curve"][0]["chosen"]
    assert found["toy-flex-0.02"]["ratio_error"] == pytest.approx(0.8)  # beta- / beta+ enters the ratio
    properties_3d.plot([found])


@pytest.mark.parametrize("scenario", properties_3d.SCENARIOS)
def test_rows_are_those_of_the_card(scenario: int) -> None:
    rows = properties_3d.rows(scenario)
    assert rows.shape == (4, 10)
    assert rows.sum(1).tolist() == pytest.approx([1.0] * 4)
    chosen, rejected = {1: (0.12, 0.12), 2: (0.02, 0.12), 3: (0.12, 0.02), 4: (0.02, 0.02)}[scenario]
    assert rows[0, :8].tolist() == [chosen] * 4 + [rejected] * 4
    assert rows[0, 9].item() == (0.01 if scenario == 1 else 0.04)


def test_the_fit_comes_near_its_rows_and_every_seed_is_another_network() -> None:
    target = properties_3d.rows(1)
    nets = [properties_3d.network(seed, target)().softmax(-1).detach() for seed in (1, 2)]
    for p in nets:
        assert (p - target).abs().max() < 0.02
    assert (nets[0] - nets[1]).abs().max() > 0
