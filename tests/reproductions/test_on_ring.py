"""The ring: what is measured on it, and a generator that is trained there in a few steps."""

from pathlib import Path

import pytest
import torch

from prefopt.reproductions import on_ring
from prefopt.reproductions.diff_instruct_star import REPRODUCTION
from prefopt.worlds import ring


def test_modes_are_counted_where_points_are_near() -> None:
    g = torch.Generator().manual_seed(0)
    points = ring.CENTRES[:, None] + ring.DEVIATION * torch.randn(8, 500, 2, generator=g)
    found = ring.measure(points.flatten(0, 1))
    assert (found["modes"], found["all_modes"]) == (4, 8)
    assert found["distance"] == pytest.approx(ring.DEVIATION * (torch.pi / 2) ** 0.5, rel=0.02)
    assert found["reward"] == pytest.approx(0.5, abs=0.01)
    assert ring.measure(points[0])["modes"] == 1
    far = ring.measure(points.flatten(0, 1) + 5)
    assert (far["modes"], far["all_modes"]) == (0, 0)


def test_a_generator_is_trained_and_kept(tmp_path: Path) -> None:
    nets = on_ring.networks(1)
    before = on_ring.sample(nets["generator"], 1, 50)
    method = {"name": "diff-instruct-star", "alpha_rew": 0.0, "alpha_cfg": 0.0, "assistant_steps": 1}
    on_ring.fit(nets, method, 2, 1e-3, 1, tmp_path / "fit", 0)
    kept = on_ring.load(tmp_path / "fit" / "weights.pt", 1)["generator"]
    assert torch.equal(on_ring.sample(kept, 1, 50), on_ring.sample(nets["generator"], 1, 50))
    assert not torch.equal(on_ring.sample(kept, 1, 50), before)


def test_demands_read_the_arms() -> None:
    ring_, blobs = ({"start": {"reward": 0.5, "modes": 4, "distance": 0.4, "unlike": 0.002}} for _ in range(2))
    for world in (ring_, blobs):
        world["reward"] = {"reward": 1.0, "modes": 1, "distance": 2.0, "unlike": 0.2}
        world["di"] = {"reward": 0.9, "modes": 4, "distance": 0.4, "unlike": 0.002, "in_place": 1.0}
        world["kl"] = {"reward": 0.9, "modes": 4, "distance": 0.4, "unlike": 0.003}
    assert REPRODUCTION.judge([{"ring": ring_, "blobs": blobs}]).verdict == "holds"
    ring_["di"]["modes"] = 3
    assert REPRODUCTION.judge([{"ring": ring_, "blobs": blobs}]).verdict == "fails"
